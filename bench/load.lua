-- Sends the requests of a file in order, and starts again at the end of the file. The file holds for
-- each request a line with its length in bytes, and then its bytes. Argument: the path of the file.
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
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'measured requests=%d microseconds=%d p50=%d p99=%d refused=%d broken=%d\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
