"""Daily DMARC aggregate reports from the gateways' events (RFC 9990): made, sent, and what became of them."""
