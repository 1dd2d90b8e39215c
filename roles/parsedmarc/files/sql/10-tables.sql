-- What parsedmarc's tables need besides what it makes itself. Safe to run again; with nothing to do it does nothing.
-- parsedmarc names the columns of its INSERTs, so that one more is no trouble for it.

-- One report with a number beyond four thousand million, or with "unknown" where an address belongs, could otherwise
-- not be stored at all. Only what differs is altered: views may already stand on these columns.
do $$
declare
    wanted record;
begin
    for wanted in
        select narrow.tab, narrow.col, narrow.wide
        from (values
            ('dmarc_aggregate_record', 'message_count', 'numeric'),
            ('smtp_tls_policy', 'successful_session_count', 'numeric'),
            ('smtp_tls_policy', 'failed_session_count', 'numeric'),
            ('smtp_tls_failure_detail', 'failed_session_count', 'numeric'),
            ('smtp_tls_failure_detail', 'sending_mta_ip', 'text'),
            ('smtp_tls_failure_detail', 'receiving_ip', 'text')
        ) as narrow(tab, col, wide)
        join pg_attribute on attrelid = ('public.' || tab)::regclass and attname = col
        where format_type(atttypid, atttypmod) <> wide
    loop
        execute format('alter table public.%I alter %I type %s using %I::%s',
                       wanted.tab, wanted.col, wanted.wide, wanted.col, wanted.wide);
    end loop;
    -- RFC 8460 makes the name optional.
    if exists (select from pg_attribute
               where attrelid = 'public.smtp_tls_report'::regclass and attname = 'organization_name' and attnotnull) then
        alter table public.smtp_tls_report alter organization_name drop not null;
    end if;
end
$$;

-- When a report was stored: without it nobody can tell which days have to be summed up anew.
alter table public.dmarc_aggregate_report add column if not exists stored_at timestamptz not null default now();
alter table public.smtp_tls_report add column if not exists stored_at timestamptz not null default now();
alter table public.dmarc_failure_report add column if not exists stored_at timestamptz not null default now();

create index if not exists record_ip on public.dmarc_aggregate_record (source_ip_address);
create index if not exists report_stored on public.dmarc_aggregate_report (stored_at);
create index if not exists report_end on public.dmarc_aggregate_report (end_date);
-- By these a mail of the archive is compared with what is stored.
create index if not exists report_key on public.dmarc_aggregate_report (report_id, domain);
create index if not exists tls_stored on public.smtp_tls_report (stored_at);
create index if not exists failure_stored on public.dmarc_failure_report (stored_at);
