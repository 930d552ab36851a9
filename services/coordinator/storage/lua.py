"""The Lua of the store's transitions; the scripts of repair and rollback have files of their own. Keys: redis_store.py.

Every script but TAKE_OVER begins with FENCE, changes nothing when repeated, and returns the number of writes too.
"""

from services.coordinator.storage.store_repair import REBOOK, RESTORE_BATCH
from services.coordinator.storage.store_rollback import FORGET, ROLL_BACK

# ARGV[1] is "fence:writes seen:round". A process's rounds follow one another; a script of an earlier round is a duplicate
# that a connection held back, while the same script was repeated over another connection and the run went on.
FENCE = """
local fence, seen, round = string.match(ARGV[1], '^(%d+):(%d+):(%d+)$')
local held = tonumber(redis.call('GET', KEYS[1]) or '0')
if held > tonumber(fence) then return redis.error_reply('FENCED') end
if held < tonumber(fence) or tonumber(redis.call('GET', KEYS[11]) or '0') < tonumber(seen) then
  return redis.error_reply('FORGOT')
end
if tonumber(round) < tonumber(redis.call('GET', KEYS[12]) or '0') then return redis.error_reply('LATE') end
"""

# KEYS: fence, round, owner. ARGV: milliseconds of Unix time, the run directory's id or nothing, 1 to take another
# directory's run. A Redis that forgot fences never gives out such a fence again, because time has passed.
TAKE_OVER = """
local owner = redis.call('GET', KEYS[3])
if owner and ARGV[2] ~= '' and owner ~= ARGV[2] and ARGV[3] ~= '1' then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[3], ARGV[2]) end
local fence = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', fence))
redis.call('DEL', KEYS[2])
return fence
"""

# Wraps every script: the answer comes with the number of writes. The round is written last, because a Redis that is full
# refuses a script's first write.
COUNTED = """
local function act()
%s
end
local answer = act()
if type(answer) == 'table' and answer.err then return answer end
redis.call('SET', KEYS[12], string.match(ARGV[1], '%%d+$'))
return {redis.call('INCR', KEYS[11]), answer}
"""

# ARGV: fence, next cursor, next admission, then (group, info JSON)... One script for groups that are admitted together: one of
# many may be refused and sent again behind the later ones, which would set the cursor back.
ADMIT = (
    FENCE
    + """
local new = 0
for i = 4, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    redis.call('HSET', KEYS[2], ARGV[i], 'open')
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
    new = new + 1
  end
end
if new == 0 then return 0 end
redis.call('HSET', KEYS[9], 'cursor', ARGV[2], 'admissions', ARGV[3])
redis.call('HINCRBY', KEYS[7], 'admitted', new)
redis.call('HINCRBY', KEYS[7], 'open', new)
return new
"""
)

# ARGV: fence, group, info JSON, payload, tokens of its samples, tokens lost on the way
ACCEPT = (
    FENCE
    + """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= 'open' then return 0 end
local entry = redis.call('XADD', KEYS[4], '*', 'group', ARGV[2], 'payload', ARGV[4])
redis.call('HSET', KEYS[5], ARGV[2], entry)
redis.call('HSET', KEYS[2], ARGV[2], 'queued')
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[7], 'open', -1)
redis.call('HINCRBY', KEYS[7], 'queued', 1)
redis.call('HINCRBY', KEYS[7], 'tokens:queued', ARGV[5])
redis.call('HINCRBY', KEYS[7], 'lost_tokens', ARGV[6])
redis.call('HINCRBY', KEYS[7], 'generated_tokens', ARGV[5] + ARGV[6])
return 1
"""
)

# ARGV: fence, group, expected state, term, row JSON, tokens of its samples, tokens lost on the way (of an open group)
END = (
    FENCE
    + """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
local entry = redis.call('HGET', KEYS[5], ARGV[2])
if entry then redis.call('XDEL', KEYS[4], entry) redis.call('HDEL', KEYS[5], ARGV[2]) end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[7], ARGV[3], -1)
redis.call('HINCRBY', KEYS[7], ARGV[4], 1)
redis.call('HINCRBY', KEYS[7], 'tokens:' .. ARGV[4], ARGV[6])
if ARGV[3] == 'open' then
  redis.call('HINCRBY', KEYS[7], 'lost_tokens', ARGV[7])
  redis.call('HINCRBY', KEYS[7], 'generated_tokens', ARGV[6] + ARGV[7])
else
  redis.call('HINCRBY', KEYS[7], 'tokens:' .. ARGV[3], 0 - ARGV[6])
end
redis.call('RPUSH', KEYS[8], ARGV[5])
return 1
"""
)

# ARGV: fence, step, record JSON, tokens of the batch, group... Payloads go first: a Redis that is full refuses a script only
# until its first write, and this is the one that makes room.
ASSIGN = (
    FENCE
    + """
local recorded = redis.call('HGET', KEYS[6], ARGV[2])
if recorded then return recorded end
for i = 5, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= 'queued' then return redis.error_reply('NOTQUEUED ' .. ARGV[i]) end
end
for i = 5, #ARGV do
  redis.call('XDEL', KEYS[4], redis.call('HGET', KEYS[5], ARGV[i]))
  redis.call('HDEL', KEYS[5], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], 'assigned')
end
redis.call('HINCRBY', KEYS[7], 'queued', 4 - #ARGV)
redis.call('HINCRBY', KEYS[7], 'assigned', #ARGV - 4)
redis.call('HINCRBY', KEYS[7], 'tokens:queued', 0 - ARGV[4])
redis.call('HINCRBY', KEYS[7], 'tokens:assigned', ARGV[4])
redis.call('HSET', KEYS[6], ARGV[2], ARGV[3])
return ARGV[3]
"""
)

# KEYS[10] = commit; ARGV: fence, step, commit JSON, trained tokens, then (group, row JSON)...
COMMIT = (
    FENCE
    + """
local recorded = redis.call('HGET', KEYS[10], ARGV[2])
if recorded then return recorded end
for i = 5, #ARGV, 2 do
  redis.call('HDEL', KEYS[2], ARGV[i])
  redis.call('HDEL', KEYS[3], ARGV[i])
  redis.call('RPUSH', KEYS[8], ARGV[i + 1])
end
local groups = (#ARGV - 4) / 2
redis.call('HINCRBY', KEYS[7], 'assigned', 0 - groups)
redis.call('HINCRBY', KEYS[7], 'trained', groups)
redis.call('HINCRBY', KEYS[7], 'tokens:assigned', 0 - ARGV[4])
redis.call('HINCRBY', KEYS[7], 'tokens:trained', ARGV[4])
redis.call('HSET', KEYS[10], ARGV[2], ARGV[3])
return ARGV[3]
"""
)


# ARGV: fence, rows dropped before, rows to drop
DROP_ROWS = (
    FENCE
    + """
if (redis.call('HGET', KEYS[9], 'rows_in_files') or '0') ~= ARGV[2] then return 0 end
redis.call('LTRIM', KEYS[8], ARGV[3], -1)
redis.call('HINCRBY', KEYS[9], 'rows_in_files', ARGV[3])
return 1
"""
)

# ARGV: fence, step. Nobody asks for batches and commits before it any more.
DROP_RECORDS = (
    FENCE
    + """
for _, records in ipairs({KEYS[6], KEYS[10]}) do
  for _, step in ipairs(redis.call('HKEYS', records)) do
    if tonumber(step) < tonumber(ARGV[2]) then redis.call('HDEL', records, step) end
  end
end
return 1
"""
)

# ARGV: fence, then (name, value)...
SET_META = (
    FENCE
    + """
redis.call('HSET', KEYS[9], unpack(ARGV, 2))
return 1
"""
)

# ARGV: fence, step, the batch's digest, term, tokens of the batch, then (group, row JSON)...
SET_ASIDE = (
    FENCE
    + """
local recorded = redis.call('HGET', KEYS[6], ARGV[2])
if not recorded or cjson.decode(recorded).digest ~= ARGV[3] or redis.call('HEXISTS', KEYS[10], ARGV[2]) == 1 then return 0 end
for i = 6, #ARGV, 2 do
  redis.call('HDEL', KEYS[2], ARGV[i])
  redis.call('HDEL', KEYS[3], ARGV[i])
  redis.call('RPUSH', KEYS[8], ARGV[i + 1])
end
local groups = (#ARGV - 5) / 2
redis.call('HINCRBY', KEYS[7], 'assigned', 0 - groups)
redis.call('HINCRBY', KEYS[7], ARGV[4], groups)
redis.call('HINCRBY', KEYS[7], 'tokens:assigned', 0 - ARGV[5])
redis.call('HINCRBY', KEYS[7], 'tokens:' .. ARGV[4], ARGV[5])
redis.call('HDEL', KEYS[6], ARGV[2])
return 1
"""
)

SCRIPTS = {
    name: COUNTED % text
    for name, text in {
        "admit": ADMIT,
        "accept": ACCEPT,
        "end": END,
        "assign": ASSIGN,
        "commit": COMMIT,
        "set_aside": SET_ASIDE,
        "drop_rows": DROP_ROWS,
        "drop_records": DROP_RECORDS,
        "set_meta": SET_META,
        "confirm": FENCE + "return 1",
        "restore_batch": FENCE + RESTORE_BATCH,
        "rebook": FENCE + REBOOK,
        "roll_back": FENCE + ROLL_BACK,
        "forget": FENCE + FORGET,
    }.items()
}
"""Scripts by the names that `Store` uses."""
