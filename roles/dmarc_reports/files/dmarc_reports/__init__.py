"""Daily DMARC aggregate reports from the gateways' events (RFC 9990): no network, no clock, no file, only decisions."""
