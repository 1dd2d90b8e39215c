-- Side tables (filled by the role and the programs) and summaries (filled by dma.refresh()).

CREATE TABLE IF NOT EXISTS dma.domain (
    name text PRIMARY KEY CHECK (name = lower(name))
);

CREATE TABLE IF NOT EXISTS dma.sender (
    network cidr PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('own', 'provider', 'forwarder', 'spoof')),
    label text NOT NULL,
    reviewed date NOT NULL DEFAULT current_date
);

CREATE TABLE IF NOT EXISTS dma.spf_record (
    domain text PRIMARY KEY,
    record text,
    lookups integer NOT NULL,
    void_lookups integer NOT NULL,
    problem text,
    includes jsonb NOT NULL DEFAULT '{}',  -- of the record itself: name → look-ups that it costs
    resolved timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS dma.spf_network (
    domain text NOT NULL,
    network cidr NOT NULL,
    via text NOT NULL,
    resolved timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain, network)
);

CREATE TABLE IF NOT EXISTS dma.ip_info (
    ip inet PRIMARY KEY,
    asn bigint,
    as_name text,
    as_domain text,
    looked_up timestamptz NOT NULL DEFAULT now()
);

-- One row for each day and whatever else tells messages apart; its indexes serve the work lists.
CREATE TABLE IF NOT EXISTS dma.daily (
    day date NOT NULL,
    policy_domain text NOT NULL,
    header_from text NOT NULL,
    envelope_domain text,
    ip inet NOT NULL,
    reporter text NOT NULL,
    country text,
    source_name text,
    source_type text,
    asn bigint,
    as_name text,
    spf_aligned boolean NOT NULL,
    dkim_aligned boolean NOT NULL,
    passed boolean NOT NULL,
    disposition text NOT NULL,
    forwarded boolean NOT NULL,
    overrides text NOT NULL,
    n bigint NOT NULL,
    records integer NOT NULL
);
CREATE INDEX IF NOT EXISTS daily_day ON dma.daily (day);
CREATE INDEX IF NOT EXISTS daily_ip ON dma.daily (ip, day);
CREATE INDEX IF NOT EXISTS daily_asn ON dma.daily (policy_domain, asn, day);

CREATE TABLE IF NOT EXISTS dma.daily_domain (
    day date NOT NULL,
    policy_domain text NOT NULL,
    header_from text NOT NULL,
    kind text NOT NULL,
    country text,
    source_type text,
    spf_aligned boolean NOT NULL,
    dkim_aligned boolean NOT NULL,
    passed boolean NOT NULL,
    disposition text NOT NULL,
    forwarded boolean NOT NULL,
    n bigint NOT NULL,
    sources integer NOT NULL
);
CREATE INDEX IF NOT EXISTS daily_domain_day ON dma.daily_domain (day);

CREATE TABLE IF NOT EXISTS dma.daily_dkim (
    day date NOT NULL,
    policy_domain text NOT NULL,
    ip inet NOT NULL,
    dkim_domain text NOT NULL,
    selector text NOT NULL,
    ours boolean NOT NULL,
    result text NOT NULL,
    n bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS daily_dkim_day ON dma.daily_dkim (day);

-- What is known of an address that mail came from.
CREATE TABLE IF NOT EXISTS dma.address (
    ip inet PRIMARY KEY,
    kind text,
    label text,
    suggested text,
    reason text,
    first_day date NOT NULL,
    last_day date NOT NULL
);

CREATE TABLE IF NOT EXISTS dma.address_spf (
    domain text NOT NULL,
    ip inet NOT NULL,
    network cidr NOT NULL,
    via text NOT NULL,
    PRIMARY KEY (domain, ip)
);

-- The refresh's notes: the days of each report that it has seen, the days it still has to make, what it last worked by.
CREATE TABLE IF NOT EXISTS dma.counted (
    report bigint NOT NULL,
    day date NOT NULL,
    PRIMARY KEY (report, day)
);
CREATE INDEX IF NOT EXISTS counted_day ON dma.counted (day);

CREATE TABLE IF NOT EXISTS dma.stale_day (
    day date PRIMARY KEY,
    records boolean NOT NULL  -- false: only the kinds of addresses have changed
);

CREATE TABLE IF NOT EXISTS dma.state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    domains text NOT NULL DEFAULT '',
    ip_info_at timestamptz NOT NULL DEFAULT '-infinity',
    suggested_on date NOT NULL DEFAULT '-infinity',
    refreshed_at timestamptz
);
INSERT INTO dma.state DEFAULT VALUES ON CONFLICT DO NOTHING;
