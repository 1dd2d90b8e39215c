"""Handlers of the estate, which Mailman finds here."""
