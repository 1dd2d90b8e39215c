"""A database of made-up DMARC reports beside the real one of a host, for the benchmarks that ask it questions."""

from __future__ import annotations

from benchlib import HERE, BenchError, podman


class ReportDatabase:
    """The schemas of the host's database ``dmarc``, empty of what is real. Methods raise BenchError."""

    def __init__(self, container: str, name: str) -> None:
        self.container, self.name = container, name

    def sql(self, text: str, user: str = "parsedmarc", *options: str, database: str = "", timeout: float = 590) -> str:
        """What psql prints as one of the database's roles."""
        command = ("runuser", "-u", user, "--", "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *options)
        return podman(self.container, *command, "-d", database or self.name, stdin=text, timeout=timeout).strip()

    def create(self, *options: str) -> None:
        """Make it, with the tables of ``dmarc`` and the rights on them; ``options`` are pg_dump's."""
        self.drop()
        self.sql(f"CREATE DATABASE {self.name} OWNER parsedmarc", "postgres", database="postgres")
        dump = ("runuser", "-u", "postgres", "--", "pg_dump", "--schema-only", *options, "dmarc")
        self.sql(podman(self.container, *dump), "postgres")
        self.sql("INSERT INTO dma.state DEFAULT VALUES ON CONFLICT DO NOTHING")

    def load(self, records: int) -> None:
        """Fill it with so many records in a realistic spread."""
        text = (HERE / "analysis_load.sql").read_text(encoding="utf-8")
        self.sql(f"\\set records {records}\n{text}", timeout=1800)

    def refresh(self) -> int:
        """Bring the summaries up to date; returns the days made."""
        made = 0
        for _ in range(100):
            done, left = map(int, self.sql("SELECT * FROM dma.refresh()", timeout=900).split("|"))
            made += done
            if not left:
                return made
        raise BenchError("dma.refresh() does not come to an end")

    def drop(self) -> None:
        """Remove it."""
        self.sql(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", "postgres", database="postgres")
