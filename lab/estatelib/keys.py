"""The DKIM keys of the outside mail systems, fetched from lab-world once."""
