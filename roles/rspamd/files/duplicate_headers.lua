--[[
Headers added to a signed message.

A DKIM signature covers the last Subject, To or Date.  An attacker who replays a signed message can put a second one on
top, and many readers show the first (reference: RFC 6376 §8.15).  The composite DKIM_EXTRA_HEADER scores the pair of
"a signature passed" and "a header that may occur once occurs twice"; this rule finds the second half.
]]

local ONCE = { 'Subject', 'To', 'Cc', 'Date', 'Reply-To', 'Sender', 'Message-ID', 'MIME-Version', 'Content-Type' }

rspamd_config:register_symbol {
  name = 'HEADER_TWICE',
  type = 'normal',
  callback = function(task)
    local twice = {}
    for _, name in ipairs(ONCE) do
      if task:get_header_count(name) > 1 then
        twice[#twice + 1] = name
      end
    end
    if #twice > 0 then
      task:insert_result('HEADER_TWICE', 1.0, table.concat(twice, ','))
    end
  end,
  score = 0.0,
  group = 'headers',
  description = 'A header that may occur once occurs more than once',
}
