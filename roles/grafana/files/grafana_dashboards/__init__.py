"""The DMARC dashboards of the analytics host as code: builders, dashboards, and the proof that their queries run."""
