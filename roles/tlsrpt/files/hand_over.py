"""Hand a report mail over to Postfix: ``hand_over.py HOST PORT SENDER``, the message on standard input.

By SMTP, to a service that signs it. The reporter writes no Date (RFC 5322 §3.6), so it comes from here. Exit status 1:
not taken over; the reporter tries again later.
"""

from __future__ import annotations

import email
import email.policy
import email.utils
import smtplib
import sys

PATIENCE = 30  # seconds


def main(host: str, port: str, sender: str) -> int:
    message = sys.stdin.buffer.read()
    fields = email.message_from_bytes(message, policy=email.policy.compat32)
    if "Date" not in fields:
        message = f"Date: {email.utils.formatdate()}\r\n".encode() + message
    recipients = [address for _name, address in email.utils.getaddresses(fields.get_all("To", []))]
    try:
        with smtplib.SMTP(host, int(port), timeout=PATIENCE) as outlet:
            refused = outlet.sendmail(sender, recipients, message)
    except (OSError, smtplib.SMTPException) as error:
        print(f"report to {', '.join(recipients)} not handed over: {error}", file=sys.stderr)
        return 1
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
