--[[
Text behind the signed part of a body.

A DKIM signature with `l=` covers the first octets of the body only (RFC 6376 §3.4.5).  It verifies, and DMARC passes,
whatever an attacker appends (§8.2).  The composite DKIM_BODY_APPENDED scores the pair of "a signature passed" and "a
signature covers less than the body"; this rule finds the second half.
]]

--- Length of a body after canonicalization (RFC 6376 §3.4.3 and §3.4.4).
local function canonical_length(body, relaxed)
  body = body:gsub('\r?\n', '\r\n')
  if relaxed then
    body = body:gsub('[ \t]+', ' '):gsub(' \r\n', '\r\n'):gsub(' $', '')
  end
  local last = #body
  while last >= 2 and body:sub(last - 1, last) == '\r\n' do
    last = last - 2
  end
  return (last > 0 or not relaxed) and last + 2 or 0
end

rspamd_config:register_symbol {
  name = 'BODY_BEYOND_SIGNATURE',
  type = 'normal',
  callback = function(task)
    local body
    for _, header in ipairs(task:get_header_full('DKIM-Signature') or {}) do
      local tags = ';' .. header.value:gsub('%s', '') .. ';'
      local signed = tonumber(tags:match(';l=(%d+);'))
      if signed then
        -- What rspamd calls the raw body begins with the line end that closes the header.
        body = body or tostring(task:get_rawbody()):gsub('^\r?\n', '')
        if signed < canonical_length(body, tags:find(';c=%a+/relaxed;') ~= nil) then
          task:insert_result('BODY_BEYOND_SIGNATURE', 1.0, tags:match(';d=([^;]*);'))
        end
      end
    end
  end,
  score = 0.0,
  group = 'headers',
  description = 'A DKIM signature covers only the beginning of the body',
}
