-- wrk's script: post the files named in its arguments in turn, count answers by status, print JSON at the end.
-- Arguments: the Content-Type, then one file for each request body. For one thread (-t1).
-- With PATIENT in the environment, a connection whose request is refused waits as long as Retry-After says.

local requests, turn, threads, waits = {}, 0, {}, {}
statuses, decode_ms, inference_ms = {}, {}, {}  -- global, so that `done` can ask the thread for them

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  for index = 2, #arguments do
    local file = assert(io.open(arguments[index], "rb"))
    table.insert(requests, wrk.format("POST", nil, {["Content-Type"] = arguments[1]}, file:read("*a")))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function response(status, headers, body)
  local name = tostring(status)
  statuses[name] = (statuses[name] or 0) + 1
  local decode, inference = body:match('"timing_ms":{"decode":([%d.]+).-"inference":([%d.]+)')
  if decode then  -- our own server says how long it took over what
    table.insert(decode_ms, decode)
    table.insert(inference_ms, inference)
  end
end

if os.getenv("PATIENT") then
  local count = response

  function response(status, headers, body)
    count(status, headers, body)
    table.insert(waits, 1000 * (tonumber(headers["Retry-After"] or headers["retry-after"]) or 0))
  end

  function delay()  -- wrk asks for it before a connection's next request, in the order of the answers
    return table.remove(waits, 1) or 0
  end
end

function done(summary, latency, unused)
  local thread, counts = threads[1], {}
  for status, count in pairs(thread:get("statuses")) do
    table.insert(counts, string.format('"%s": %d', status, count))
  end
  local errors = summary.errors
  io.write(string.format(
    '\nJSON {"seconds": %.6f, "statuses": {%s}, "unanswered": %d, "p50_ms": %.3f, "p99_ms": %.3f, '
      .. '"decode_ms": [%s], "inference_ms": [%s]}\n',
    summary.duration / 1e6, table.concat(counts, ", "),
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    table.concat(thread:get("decode_ms"), ", "), table.concat(thread:get("inference_ms"), ", ")))
end
