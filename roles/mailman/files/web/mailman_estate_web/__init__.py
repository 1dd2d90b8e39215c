"""What this estate adds to Mailman's web interface: URLs, one-click unsubscription, single sign-on, rate limits."""
