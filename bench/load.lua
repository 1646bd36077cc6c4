-- Sends the requests of a file in order, and starts again at the end of the file. The file holds for
-- each request a line with its length in bytes, and then its bytes. Argument: the path of the file.
--
-- Requests with If-Match are conditional writes, one for each book. Each is sent again after its
-- response, with the ETag of the response and another price.
local requests, place = {}, 0

function init(args)
  local file = assert(io.open(args[1], 'rb'))
  local length = file:read('*n')
  while length do
    file:read(1)
    requests[#requests + 1] = file:read(length)
    length = file:read('*n')
  end
  file:close()
  if requests[1]:find('\r\nIf-Match: ', 1, true) then follow_tags() end
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function follow_tags()
  local by_id, idle, sent = {}, {}, 0
  for index, text in ipairs(requests) do
    by_id[text:match('^%u+ /%S-/(%d+) ')] = text
    idle[index] = text
  end

  function request()
    sent = sent + 1
    local price = string.format('"price": %05.2f', 10 + sent % 9000 / 100)
    local text = table.remove(idle) or requests[1]
    return (text:gsub('"price": [%d.]+', price))
  end

  function response(status, headers, body)
    if status ~= 200 then return end
    local tag = headers.ETag or headers.etag
    local text = by_id[body:match('"id":(%d+)')]:gsub('If%-Match: [^\r]+', 'If-Match: ' .. tag)
    idle[#idle + 1] = text
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'measured requests=%d microseconds=%d p50=%d p99=%d refused=%d broken=%d\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
