"""The Lua of a repair (repair.py), which writes forgotten facts into Redis again. Keys: redis_store.py."""

# ARGV: fence, step, record JSON, then (group, info JSON, tokens of its samples)...
RESTORE_BATCH = """
if redis.call('HEXISTS', KEYS[6], ARGV[2]) == 1 then return 0 end
for i = 4, #ARGV, 3 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == 'assigned' then return redis.error_reply('NOTQUEUED ' .. ARGV[i]) end
end
for i = 4, #ARGV, 3 do
  local group, tokens = ARGV[i], ARGV[i + 2]
  local was = redis.call('HGET', KEYS[2], group)
  local entry = redis.call('HGET', KEYS[5], group)
  if entry then redis.call('XDEL', KEYS[4], entry) redis.call('HDEL', KEYS[5], group) end
  if was then redis.call('HINCRBY', KEYS[7], was, -1) else redis.call('HINCRBY', KEYS[7], 'admitted', 1) end
  if was == 'queued' then
    redis.call('HINCRBY', KEYS[7], 'tokens:queued', 0 - tokens)
  else
    redis.call('HINCRBY', KEYS[7], 'generated_tokens', tokens)
  end
  redis.call('HSET', KEYS[2], group, 'assigned')
  redis.call('HSET', KEYS[3], group, ARGV[i + 1])
  redis.call('HINCRBY', KEYS[7], 'assigned', 1)
  redis.call('HINCRBY', KEYS[7], 'tokens:assigned', tokens)
end
redis.call('HSET', KEYS[6], ARGV[2], ARGV[3])
return 1
"""

# ARGV: fence, Redis's count of rows in files, then (group, term, tokens of its samples, tokens lost) of the later rows.
# Rows that the list still holds are part of the same sequence: they are counted already, and in a file by now.
REBOOK = """
if (redis.call('HGET', KEYS[9], 'rows_in_files') or '0') ~= ARGV[2] then return 0 end
local count = (#ARGV - 2) / 4
local counted = math.min(count, redis.call('LLEN', KEYS[8]))
local more = {}
local function add(name, number) more[name] = (more[name] or 0) + tonumber(number) end
for i = 3 + 4 * counted, #ARGV, 4 do
  local group, term, tokens, lost = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local was = redis.call('HGET', KEYS[2], group)
  local entry = was and redis.call('HGET', KEYS[5], group)
  if entry then redis.call('XDEL', KEYS[4], entry) redis.call('HDEL', KEYS[5], group) end
  if was then
    redis.call('HDEL', KEYS[2], group)
    redis.call('HDEL', KEYS[3], group)
    add(was, -1)
  else
    add('admitted', 1)
  end
  if was == 'queued' or was == 'assigned' then
    add('tokens:' .. was, 0 - tokens)
  else
    add('generated_tokens', tokens + lost)
    add('lost_tokens', lost)
  end
  add(term, 1)
  add('tokens:' .. term, tokens)
end
for name, number in pairs(more) do redis.call('HINCRBY', KEYS[7], name, string.format('%.0f', number)) end
redis.call('LTRIM', KEYS[8], count, -1)
redis.call('HINCRBY', KEYS[9], 'rows_in_files', count)
return count - counted
"""
