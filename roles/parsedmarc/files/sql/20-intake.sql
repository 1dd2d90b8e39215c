-- What the screening and the upkeep know. Safe to run again.
create schema if not exists intake;

-- A mail that was set aside, once for every time that happened.
create table if not exists intake.set_aside (
    id bigint generated always as identity primary key,
    at timestamptz not null,
    kind text not null,
    reason text not null,
    message_id text,
    from_domain text,
    subject text,
    size bigint,
    mail text not null,
    released_at timestamptz,
    unique (mail, at)
);
create index if not exists set_aside_at on intake.set_aside (at);

create table if not exists intake.folder (
    folder text primary key,
    messages integer not null,
    bytes bigint not null,
    oldest timestamptz,
    counted_at timestamptz not null default now()
);

create or replace view intake.health as
select
    coalesce(sum(messages) filter (where folder in ('incoming', 'waiting')), 0)::integer as waiting,
    coalesce(sum(messages) filter (where folder = 'unsaved'), 0)::integer as unsaved,
    coalesce(sum(messages) filter (where folder = 'set-aside/poison'), 0)::integer as poison,
    coalesce(sum(messages) filter (where folder in ('invalid', 'set-aside/invalid')), 0)::integer as invalid,
    coalesce(sum(messages) filter (where folder like 'set-aside/%'
                                   and folder not in ('set-aside/poison', 'set-aside/invalid')), 0)::integer as set_aside,
    coalesce(extract(epoch from now() - min(oldest) filter (where folder in ('incoming', 'waiting'))), 0)::integer
        as oldest_waiting_seconds,
    (select max(stored_at) from (select max(stored_at) as stored_at from public.dmarc_aggregate_report
                                 union all select max(stored_at) from public.smtp_tls_report) as newest) as last_stored,
    (select count(*) from public.dmarc_aggregate_report where stored_at > now() - interval '1 day')::integer
    + (select count(*) from public.smtp_tls_report where stored_at > now() - interval '1 day')::integer as stored_last_day,
    max(counted_at) as counted_at
from intake.folder;
