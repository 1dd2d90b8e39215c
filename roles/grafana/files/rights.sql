-- One row: what Grafana's role lacks, and what it could do beyond reading its views. Names that do not exist count as
-- lacking. %(role)s may not exist either.
WITH relation AS (
    SELECT c.oid, format('%%I.%%I', n.nspname, c.relname) AS name,
        n.nspname = 'dma'
        OR n.nspname = 'dmarc_reports' AND c.relname LIKE 'survey\_%%' AND c.relkind = 'v'
        OR n.nspname = 'intake' AND c.relname IN ('folder', 'health') AS ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_|^information_schema$'
),
lent AS (SELECT oid, rolname, rolsuper FROM pg_roles WHERE rolname = %(role)s)
SELECT
    EXISTS (SELECT FROM lent) AS there,
    EXISTS (SELECT FROM lent WHERE has_database_privilege(oid, current_database(), 'CONNECT')) AS connects,
    ARRAY(
        SELECT v FROM jsonb_array_elements_text(%(views)s::jsonb) v
        WHERE NOT EXISTS (
            SELECT FROM lent WHERE has_schema_privilege(lent.oid, to_regnamespace(split_part(v, '.', 1))::oid, 'USAGE')
                AND has_table_privilege(lent.oid, to_regclass(v)::oid, 'SELECT')
        )
        UNION ALL
        SELECT f FROM jsonb_array_elements_text(%(functions)s::jsonb) f
        WHERE NOT EXISTS (SELECT FROM lent WHERE has_function_privilege(lent.oid, to_regprocedure(f)::oid, 'EXECUTE'))
    ) AS missing,
    ARRAY(
        SELECT r.name FROM relation r, lent
        WHERE NOT r.ours AND has_any_column_privilege(lent.oid, r.oid, 'SELECT')
            OR has_any_column_privilege(lent.oid, r.oid, 'INSERT, UPDATE')
            OR has_table_privilege(lent.oid, r.oid, 'DELETE, TRUNCATE')
        UNION ALL
        SELECT 'everything: it is a superuser' FROM lent WHERE rolsuper
        ORDER BY 1
    ) AS beyond,
    ARRAY(
        SELECT l FROM jsonb_array_elements_text(%(limits)s::jsonb) l
        WHERE NOT EXISTS (
            SELECT FROM lent JOIN pg_db_role_setting s ON s.setrole = lent.oid
            JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
            WHERE l = ANY(s.setconfig)
        )
    ) AS unbound
