-- What the roles dmarc_analysis (dmarc_analysis_readers) and parsedmarc (parsedmarc_health_readers) let Grafana do.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dma FROM PUBLIC;
GRANT USAGE ON SCHEMA dma, intake TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA dma TO grafana;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dma TO grafana;
GRANT SELECT ON intake.folder, intake.health TO grafana;
