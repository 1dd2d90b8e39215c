-- Days, reports and deliveries. Applied as role dmarc_reports, in one transaction with its neighbours, whenever one of
-- them changed: every statement can be repeated.

CREATE TABLE IF NOT EXISTS dmarc_reports.day (
    day date PRIMARY KEY,
    closed_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL,
    events int NOT NULL,
    reports int NOT NULL,
    late int NOT NULL DEFAULT 0,
    without_policy int NOT NULL DEFAULT 0,
    unreadable int NOT NULL DEFAULT 0
);
COMMENT ON TABLE dmarc_reports.day IS 'UTC days that are closed: each once, and nothing is added to it any more';
COMMENT ON COLUMN dmarc_reports.day.reason IS 'complete; gateways missing: …; older than … days: no reports';
COMMENT ON COLUMN dmarc_reports.day.events IS 'messages that were looked at, with or without a policy';
COMMENT ON COLUMN dmarc_reports.day.late IS 'events that came after the day was closed, in no report';

CREATE TABLE IF NOT EXISTS dmarc_reports.report (
    report_id text PRIMARY KEY,
    day date NOT NULL REFERENCES dmarc_reports.day (day),
    policy_domain text NOT NULL,
    form text NOT NULL CHECK (form IN ('rfc9990', 'rfc7489')),
    messages int NOT NULL,
    records int NOT NULL,
    content bytea,
    file_name text NOT NULL,
    subject text NOT NULL,
    rua text NOT NULL
);
CREATE INDEX IF NOT EXISTS report_day ON dmarc_reports.report (day);
CREATE INDEX IF NOT EXISTS report_policy_domain ON dmarc_reports.report (policy_domain);
COMMENT ON COLUMN dmarc_reports.report.content IS 'gzip, as sent; dropped after a while';
COMMENT ON COLUMN dmarc_reports.report.rua IS 'as published when the last message came';

CREATE TABLE IF NOT EXISTS dmarc_reports.delivery (
    id bigserial PRIMARY KEY,
    report_id text NOT NULL REFERENCES dmarc_reports.report (report_id) ON DELETE CASCADE,
    day date NOT NULL,
    policy_domain text NOT NULL,
    recipient text NOT NULL,
    recipient_domain text,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'handed', 'settled')),
    fate text CHECK (fate IN (
        'taken', 'deferred', 'refused', 'bounced_later', 'no_mx', 'nxdomain', 'mailbox_full', 'no_mailbox',
        'too_large', 'spam_policy', 'tls', 'unreachable', 'expired', 'wrong_syntax', 'not_mailto', 'duplicate',
        'too_many', 'excluded', 'own', 'not_authorised', 'overridden_wrongly', 'dns_temperror', 'paused'
    )),
    dsn text,
    reply text,
    attempts int NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    checked_at timestamptz,
    dns_failures int NOT NULL DEFAULT 0,
    max_bytes bigint,
    sending_at timestamptz,
    handed_at timestamptz,
    settled_at timestamptz,
    queue_id text,
    message_id text,
    envelope_from text UNIQUE
);
COMMENT ON COLUMN dmarc_reports.delivery.recipient IS 'a mailbox, or the address of the rua as published where it gets no mail';
COMMENT ON COLUMN dmarc_reports.delivery.attempts IS 'hand-overs to our own Postfix';
COMMENT ON COLUMN dmarc_reports.delivery.checked_at IS 'since when the domain of the recipient is known to want the report';
COMMENT ON COLUMN dmarc_reports.delivery.sending_at IS 'committed before the hand-over; a row left in state sending is looked up in the journal';
-- one mail for one report and mailbox; an address that gets none may be named as often as the record likes
CREATE UNIQUE INDEX IF NOT EXISTS delivery_once ON dmarc_reports.delivery (report_id, recipient)
    WHERE state <> 'settled' OR envelope_from IS NOT NULL;
CREATE INDEX IF NOT EXISTS delivery_due ON dmarc_reports.delivery (due_at) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS delivery_open ON dmarc_reports.delivery (state) WHERE state IN ('sending', 'handed');
CREATE INDEX IF NOT EXISTS delivery_report ON dmarc_reports.delivery (report_id);
CREATE INDEX IF NOT EXISTS delivery_day ON dmarc_reports.delivery (day);
CREATE INDEX IF NOT EXISTS delivery_recipient_domain ON dmarc_reports.delivery (recipient_domain, day);
CREATE INDEX IF NOT EXISTS delivery_queue_id ON dmarc_reports.delivery (queue_id) WHERE queue_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS dmarc_reports.pause (
    recipient_domain text PRIMARY KEY,
    failures int NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    until timestamptz NOT NULL,
    last_fate text NOT NULL
);
COMMENT ON TABLE dmarc_reports.pause IS 'domains that never take a report: nothing is sent to them until then';

-- The order in which a day's events are read: by policy domain, so that only one domain's rows are in memory. NULL for
-- what has no policy, or is JSON that PostgreSQL does not read; the generator, not this function, decides what is an
-- event.
CREATE OR REPLACE FUNCTION dmarc_reports.policy_domain(line text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN line::json #>> '{policy,domain}';
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;
