"""What the DMARC reports mean: schema ``dma`` over parsedmarc's tables, and the programs that keep it up."""
