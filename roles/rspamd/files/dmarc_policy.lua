--[[
What a DMARC failure means here (RFC 9989 §7.4).

`p=reject` alone is no reason to refuse a message: without further knowledge the message is treated as `p=quarantine`,
that is marked.  Two kinds of further knowledge exist:
 * the author domain is listed as strict: the message is refused;
 * the last sealer of the message's ARC chain is trusted and says that DMARC passed when the message reached it: the
   failure is the forwarder's doing, nothing is marked or refused.  The verifying milter in front of rspamd writes that
   knowledge into a private header (and removes every such header that comes from outside).

`pct` is historic (RFC 9989 §A.6): a message that rspamd "samples out" is treated by the policy as published.
]]

local options = ...
local rspamd_logger = require 'rspamd_logger'

local FAILED = { 'DMARC_POLICY_REJECT', 'DMARC_POLICY_QUARANTINE', 'DMARC_POLICY_SOFTFAIL' }

local strict = {}
for _, domain in ipairs(options.strict_domains) do
  strict[domain:lower()] = true
end

--- Whether the domain, or a domain above it, is listed as strict.
local function is_strict(domain)
  while domain do
    if strict[domain] then
      return true
    end
    domain = domain:match('^[^.]+%.(.+)$')
  end
  return false
end

--- The policy that the author domain published, when DMARC failed; otherwise nil.
local function failed_policy(task)
  for _, name in ipairs(FAILED) do
    local symbol = task:get_symbol(name)
    if symbol then
      return (symbol[1].options or {})[2]
    end
  end
end

rspamd_config:register_symbol {
  name = 'ARC_TRUSTED_DMARC_PASS',
  type = 'normal',
  callback = function(task)
    -- Exactly one header, exactly this value: anything else gives nothing.
    if options.arc_header ~= ''
        and task:get_header_count(options.arc_header) == 1
        and task:get_header(options.arc_header) == 'pass; trusted=yes; dmarc=pass' then
      task:insert_result('ARC_TRUSTED_DMARC_PASS', 1.0)
    end
  end,
  score = 0.0,
  -- Upstream's composites take the weight off SPF failures when a symbol of this group is present.
  group = 'forwarding',
  description = 'A trusted sealer vouches that DMARC passed before the message was forwarded',
}

rspamd_config:register_symbol {
  name = 'DMARC_POLICY_APPLIED',
  type = 'postfilter',
  callback = function(task)
    local policy = failed_policy(task)
    if policy ~= 'reject' and policy ~= 'quarantine' then
      return
    end
    if task:has_symbol('ARC_TRUSTED_DMARC_PASS') then
      task:insert_result('DMARC_POLICY_APPLIED', 1.0, 'none', 'trusted_forwarder')
      return
    end
    local from = (task:get_from('mime') or {})[1]
    local domain = from and (from.domain or ''):lower() or ''
    if policy == 'reject' and is_strict(domain) then
      task:insert_result('DMARC_POLICY_APPLIED', 1.0, 'reject', 'strict_domain')
      task:set_pre_result {
        action = 'reject',
        module = 'dmarc_policy',
        message = string.format('Mail from %s must pass DMARC (p=reject): not authorised by its domain owner', domain),
      }
      rspamd_logger.infox(task, 'refused: %s is strict and DMARC failed', domain)
      return
    end
    task:insert_result('DMARC_POLICY_APPLIED', 1.0, 'quarantine')
    task:set_pre_result {
      action = 'add header',
      module = 'dmarc_policy',
      message = 'DMARC policy of the author domain',
      flags = 'least', -- a score that demands more still counts
    }
  end,
  score = 0.0,
  group = 'policies',
  description = 'How a DMARC failure was treated: none, quarantine or reject',
}
