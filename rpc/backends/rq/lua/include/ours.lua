local function is_hash(key) return redis.call('TYPE', key).ok == 'hash' end
local function is_ours(job) return is_hash(job) and redis.call('HEXISTS', job, 'rpc_queue') == 1 end
