"""The Lua of a rollback (rollback.py): one script decides the rollback. Keys: redis_store.py."""

# ARGV: fence, number of the rollback, version to go back to, trained groups given up, their tokens, entries of meta,
# then (name, value) for each of these, then (group, row JSON, tokens of its samples, tokens lost) of live groups.
ROLL_BACK = """
if tonumber(redis.call('HGET', KEYS[9], 'rolled_back') or '0') >= tonumber(ARGV[2]) then return 0 end
local first = 7 + 2 * tonumber(ARGV[6])
for i = first, #ARGV, 4 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then return redis.error_reply('NOTLIVE ' .. ARGV[i]) end
end
for i = first, #ARGV, 4 do
  local group, tokens, lost = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  local was = redis.call('HGET', KEYS[2], group)
  local entry = redis.call('HGET', KEYS[5], group)
  if entry then redis.call('XDEL', KEYS[4], entry) redis.call('HDEL', KEYS[5], group) end
  redis.call('HDEL', KEYS[2], group)
  redis.call('HDEL', KEYS[3], group)
  redis.call('HINCRBY', KEYS[7], was, -1)
  redis.call('HINCRBY', KEYS[7], 'rollback', 1)
  redis.call('HINCRBY', KEYS[7], 'tokens:rollback', tokens)
  if was == 'open' then
    redis.call('HINCRBY', KEYS[7], 'lost_tokens', lost)
    redis.call('HINCRBY', KEYS[7], 'generated_tokens', tokens + lost)
  else
    redis.call('HINCRBY', KEYS[7], 'tokens:' .. was, 0 - tokens)
  end
  redis.call('RPUSH', KEYS[8], ARGV[i + 1])
end
redis.call('HINCRBY', KEYS[7], 'trained', 0 - ARGV[4])
redis.call('HINCRBY', KEYS[7], 'rollback', ARGV[4])
redis.call('HINCRBY', KEYS[7], 'tokens:trained', 0 - ARGV[5])
redis.call('HINCRBY', KEYS[7], 'tokens:rollback', ARGV[5])
for _, records in ipairs({KEYS[6], KEYS[10]}) do
  for _, step in ipairs(redis.call('HKEYS', records)) do
    if tonumber(step) >= tonumber(ARGV[3]) then redis.call('HDEL', records, step) end
  end
end
for i = 7, first - 1, 2 do redis.call('HSET', KEYS[9], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[9], 'rolled_back', ARGV[2], 'learner_incarnation', '')
return 1
"""

# ARGV: fence, number of the newest rollback, all rollbacks as JSON. Redis forgot the newest one and knows nothing later.
FORGET = """
for i = 2, 10 do redis.call('DEL', KEYS[i]) end
redis.call('HSET', KEYS[9], 'rolled_back', ARGV[2], 'rollbacks', ARGV[3])
return 1
"""
