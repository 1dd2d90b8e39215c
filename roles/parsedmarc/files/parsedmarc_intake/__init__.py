"""Screening and upkeep of the mailbox that DMARC and TLS reports arrive in (RFC 9990, RFC 8460, RFC 9991).

Reports are mail from strangers. Every mail is looked at before parsedmarc sees it: who sent it (the gateways' DMARC
result), how much comes out of it when it is unpacked, whether it is a report at all. What does not belong there is set
aside with a reason, for a person to look at. What parsedmarc itself cannot read or store is set aside afterwards.
"""
