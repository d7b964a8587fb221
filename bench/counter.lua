-- Load for wrk: POST URL_PATH, with {k} replaced by 1 to SESSIONS in turn, body "1".
-- Ends with one line: RESULT and a JSON object.
local sessions = tonumber(os.getenv("SESSIONS") or "1000")
local path = os.getenv("URL_PATH") or "/fn/counter/k{k}"
local headers = { ["content-type"] = "application/json" }

-- Threads begin at different sessions.
local threads = 0
function setup(thread)
  thread:set("thread_index", threads)
  threads = threads + 1
end

local requests, next_session = {}, 0
function init()
  for k = 1, sessions do
    requests[k] = wrk.format("POST", (path:gsub("{k}", tostring(k))), headers, "1")
  end
  next_session = thread_index * math.floor(sessions / 2)
end

function request()
  next_session = next_session % sessions + 1
  return requests[next_session]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"requests_per_second":%.1f,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p99_9_us":%d,"max_us":%d,"non_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.requests / summary.duration * 1e6,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
