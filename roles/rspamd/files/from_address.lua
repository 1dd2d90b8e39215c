--[[
One message, one author address (RFC 9989 §5.3.1 presumes it, RFC 5322 §3.6.2 shapes it).

DMARC vouches for the domain of the From address.  A message with no From, with two, with several addresses in one, or
with a From that two parsers read differently is vouched for by nobody and can show the reader whichever address the
attacker likes (espoofer a8-a19).  Such mail is refused here, before anything else is computed.

Accepted on purpose: encoded words and plain UTF-8 in display names, comments, quoted names, and the local parts with
dots in odd places that Japanese mobile carriers gave out (`taro..yamada.@example.jp`).

A message without any header reaches rspamd as its body alone, and rspamd takes the first lines of that body for headers.
The first line must therefore look like a header.  Where a milter in front adds a header to every message (the ARC
verifier does), such a body cannot be mistaken at all.
]]

local SYMBOL = 'FROM_ADDRESS_INVALID'

-- An RFC 2047 encoded word; legal in a display name, never in an address.
local ENCODED_WORD = '=%?[^%s?]+%?[BbQq]%?[^%s?]*%?='

--- Splits the value of a From field into tokens.
-- @return list of {kind = 'atom' | 'quoted' | 'angle', text = …, from = first byte, to = last byte}; comments vanish
-- @return nil and a sentence when the value is not well formed
local function tokenize(value)
  local tokens, i, n = {}, 1, #value

  -- The closing quote of a quoted string that opens at `open`.
  local function quote_end(open)
    local k = open + 1
    while k <= n do
      local c = value:sub(k, k)
      if c == '\\' then
        k = k + 1
      elseif c == '"' then
        return k
      end
      k = k + 1
    end
  end

  while i <= n do
    local c = value:sub(i, i)
    if c:find('^%s') then
      i = i + 1
    elseif c == '"' then
      local close = quote_end(i)
      if not close then
        return nil, 'quotation mark without end'
      end
      tokens[#tokens + 1] = { kind = 'quoted', text = value:sub(i + 1, close - 1), from = i, to = close }
      i = close + 1
    elseif c == '(' then
      local depth, k = 0, i
      repeat
        local d = value:sub(k, k)
        if d == '\\' then
          k = k + 1
        elseif d == '(' then
          depth = depth + 1
        elseif d == ')' then
          depth = depth - 1
        end
        k = k + 1
      until depth == 0 or k > n
      if depth > 0 then
        return nil, 'comment without end'
      end
      i = k
    elseif c == '<' then
      local k = i + 1
      while k <= n do
        local d = value:sub(k, k)
        if d == '"' then
          k = quote_end(k)
          if not k then
            return nil, 'quotation mark without end'
          end
        elseif d == '<' then
          return nil, 'angle bracket inside an address'
        elseif d == '>' then
          break
        end
        k = k + 1
      end
      if k > n then
        return nil, 'angle bracket without end'
      end
      tokens[#tokens + 1] = { kind = 'angle', text = value:sub(i + 1, k - 1), from = i, to = k }
      i = k + 1
    elseif c == ',' then
      return nil, 'more than one address'
    elseif c == ':' or c == ';' then
      return nil, 'group syntax'
    elseif c == '>' or c == ')' then
      return nil, 'closing bracket without opening one'
    elseif c == '\\' then
      return nil, 'backslash outside quotation marks'
    else
      local _, stop = value:find('^[^%s"(),:;<>\\]+', i)
      tokens[#tokens + 1] = { kind = 'atom', text = value:sub(i, stop), from = i, to = stop }
      i = stop + 1
    end
  end
  return tokens
end

--- Checks one addr-spec and returns its domain in lower case, or nil and a sentence.
local function domain_of(address)
  if address:find(ENCODED_WORD) then
    return nil, 'encoded word in place of an address'
  end
  if address:sub(1, 1) == '@' then
    return nil, 'source route'
  end
  local domain = address:match('^"[^"%c\\@<>,;:]+"@([^@"]+)$')
      or address:match("^[%w!#$%%&'*+/=?^_`{|}~.\128-\255-]+@([^@]+)$")
  if not domain then
    return nil, 'no valid address'
  end
  if not domain:find('^[%w_.\128-\255-]+$') or domain:find('^%.') or domain:find('%.$') or domain:find('%.%.') then
    return nil, 'no valid domain'
  end
  return domain:lower()
end

--- Reads the value of a From field that must hold exactly one mailbox.
-- @param raw the value as received, folds included
-- @param decoded the same value with its encoded words decoded
-- @return the domain of the address in lower case, or nil and a sentence saying what is wrong
local function author_domain(raw, decoded)
  local value = raw:gsub('\r?\n([ \t])', '%1'):gsub('[\r\n]+$', '')
  if value:gsub('\t', ' '):find('%c') then
    return nil, 'control character'
  end
  local tokens, problem = tokenize(value)
  if not tokens then
    return nil, problem
  end
  local last = tokens[#tokens]
  if not last then
    return nil, 'empty'
  end

  if last.kind ~= 'angle' then
    -- A bare address: one atom, or a quoted local part with "@domain" right behind it.
    for _, token in ipairs(tokens) do
      if token.kind == 'angle' then
        return nil, 'text after the address'
      end
    end
    if #tokens == 2 and tokens[1].kind == 'quoted' and last.text:find('^@') and tokens[1].to + 1 == last.from then
      return domain_of('"' .. tokens[1].text .. '"' .. last.text)
    end
    if #tokens > 1 or last.kind == 'quoted' then
      return nil, 'no valid address'
    end
    return domain_of(last.text)
  end

  local address = last.text:match('^%s*(.-)%s*$')
  local domain
  domain, problem = domain_of(address)
  if not domain then
    return nil, problem
  end
  for k = 1, #tokens - 1 do
    local token = tokens[k]
    if token.kind == 'angle' then
      return nil, 'more than one address'
    end
    -- `taro@example.jp <taro@example.jp>` is common and harmless; another address in front is not.
    if token.kind == 'atom' and token.text:find('@', 1, true) and token.text:lower() ~= address:lower() then
      return nil, 'another address in the display name'
    end
  end
  -- An encoded word that hides a second `<address>` is read as an address by software that decodes before it parses.
  if value:find(ENCODED_WORD) then
    for hidden in (decoded or ''):gmatch('<%s*([^<>%s]+@[^<>%s]+)%s*>') do
      if hidden:lower() ~= address:lower() then
        return nil, 'another address hidden in an encoded word'
      end
    end
  end
  return domain
end

local function check(task)
  local found = {}
  task:headers_foreach(function(name, header)
    -- "From " and a name with stray blanks count as well: some readers accept them.
    if name:lower():gsub('%s', '') == 'from' then
      found[#found + 1] = header
    end
    return false
  end, { full = true })

  local problem
  if not tostring(task:get_raw_headers() or ''):find('^[!-9;-~]+[ \t]*:') then
    problem = 'no header at all'
  elseif #found == 0 then
    problem = 'no From header'
  elseif #found > 1 then
    problem = 'more than one From header'
  else
    local domain
    domain, problem = author_domain(found[1].value or '', found[1].decoded)
    if domain then
      -- DMARC is evaluated on rspamd's own reading of the field: both readings must agree.
      local mime = task:get_from('mime') or {}
      if #mime ~= 1 or (mime[1].domain or ''):lower() ~= domain then
        problem = 'ambiguous address'
      end
    end
  end

  if problem then
    task:insert_result(SYMBOL, 1.0, problem)
    task:set_pre_result {
      action = 'reject',
      module = 'from_address',
      message = string.format('Message must have exactly one valid From address: %s', problem),
    }
  end
end

rspamd_config:register_symbol {
  name = SYMBOL,
  type = 'prefilter',
  priority = 10,
  callback = check,
  score = 0.0,
  group = 'policies',
  description = 'The From header does not hold exactly one valid address',
}
