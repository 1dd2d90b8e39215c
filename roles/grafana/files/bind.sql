-- Takes from Grafana's role whatever somebody gave it beyond its views; what PUBLIC may do cannot be taken from it and
-- is an error.
DO $do$
DECLARE
    what record;
    left_over text;
BEGIN
    FOR what IN
        SELECT n.nspname, c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_|^information_schema$'
            AND has_any_column_privilege('@role@', c.oid, 'SELECT, INSERT, UPDATE')
    LOOP
        IF what.nspname = 'dma' OR what.nspname = 'dmarc_reports' AND what.relname LIKE 'survey\_%'
            OR what.nspname = 'intake' AND what.relname IN ('folder', 'health') THEN
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON %I.%I FROM %I',
                           what.nspname, what.relname, '@role@');
        ELSE
            EXECUTE format('REVOKE ALL ON %I.%I FROM %I', what.nspname, what.relname, '@role@');
            IF has_any_column_privilege('@role@', what.oid, 'SELECT, INSERT, UPDATE') THEN
                left_over := concat_ws(', ', left_over, what.nspname || '.' || what.relname);
            END IF;
        END IF;
    END LOOP;
    FOR what IN
        SELECT DISTINCT owner.rolname, n.nspname FROM pg_default_acl d
        JOIN pg_roles owner ON owner.oid = d.defaclrole
        JOIN pg_namespace n ON n.oid = d.defaclnamespace AND n.nspname NOT IN ('dma', 'dmarc_reports', 'intake')
        CROSS JOIN LATERAL aclexplode(d.defaclacl) a JOIN pg_roles r ON r.oid = a.grantee AND r.rolname = '@role@'
        WHERE d.defaclobjtype = 'r'
    LOOP
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I REVOKE ALL ON TABLES FROM %I',
                       what.rolname, what.nspname, '@role@');
    END LOOP;
    IF left_over IS NOT NULL THEN
        RAISE EXCEPTION 'role @role@ can still read %, through PUBLIC or a role that it is a member of', left_over;
    END IF;
END
$do$;
