"""One module for each dashboard; ``BOARDS`` are their builders in the order in which one reads them."""

from __future__ import annotations

from collections.abc import Callable

from grafana_dashboards import model
from grafana_dashboards.boards import domain, domains, intake, reports_out, sources, spf, tls

BOARDS: tuple[Callable[[], model.Json], ...] = (
    domains.build,
    domain.build,
    sources.build,
    spf.build,
    tls.build,
    reports_out.build,
    intake.build,
)
