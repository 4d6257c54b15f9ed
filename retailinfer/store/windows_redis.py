"""Windows of all processes in one Redis: the script that reads and adds in one step, and who carries requests to it.

One value per entity, in the packed form of `_native/windows_wire.h`. The script gives each value as it was before and adds the
event, so that no two attempts can see the same count; sums are taken natively from what it gave, by the code that reads
windows in memory. The script's own arithmetic is on integers up to 2**53, which a double holds exactly.

Rules:
  * One round trip per request, for all entities. More only when something changed: the script is not known to the server, a
    window is new to it, its memory is gone, a cluster moved a slot.
  * What the script decides about an event (twice seen, too late, a sum that overflows) the native code decides again from the
    same value by the same rules. If one of its sums would overflow, nothing of the request is added.
  * The registry (one hash) says since when each accumulator is complete, and has an id that changes with every change of it.
    A request names the id that it knows; with another one nothing is done until the registry has been read again. So a Redis
    that was emptied gives no zeros for counts: its windows are stale until they have been refilled by time.
  * No exception of Redis gets out. An entity whose value is not one of ours is unavailable, counted, and left as it is.
  * After failures the door is closed for up to a second (backoff.py): requests then go on at once, without windows.
In a cluster the values of one request may lie on several nodes: each is still read and added to in one step, in one flight to
all of them; give a prefix with a hash tag, as in `ri:{fraud}`, to have one step for all.
Connections: redis_link.py. Windows in memory: windows.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from retailinfer._native.windows import MAX_KEEP, WindowGroup
from retailinfer.clock import Clock, SystemClock
from retailinfer.errors import ConfigError, Unavailable, clip
from retailinfer.store.backoff import Backoff, State
from retailinfer.store.redis_link import ErrorReply, LinkError, LinkTimeout, RedisLink, Reply, encode

__all__ = ["Entity", "RedisWindows", "RedisWindowsStats", "Value"]

Entity: TypeAlias = tuple[str, bytes, bytes]  # name of the entity, canonical key, list of operations
Value: TypeAlias = bytes | Literal[False] | None  # as it was before; None: there was none; False: unavailable

_BLAMELESS_S = (
    0.002  # a request that had less than this left proves nothing about Redis when it got no answer
)
_BATCH = 128  # events of history that go out together
_TRIES = 3  # rounds of one request: the script unknown, the registry changed

# KEYS: the registry, unless this is a cluster; then one key per entity.
# ARGV: the registry's id as the caller knows it; then one list of operations per entity (windows_wire.h).
# Returns the registry's id, then each entity's value as it was before; the id alone if it is another one.
_ADD = """
local unpack, pack, sub, concat = struct.unpack, struct.pack, string.sub, table.concat
local WIDTH = {[0] = 8, [1] = 16, [2] = 12, [3] = 12, [4] = 8, [5] = 8}
local MOST, U32, NO_ID = 9007199254740992, 4294967295, '\\0\\0\\0\\0\\0\\0\\0\\0'
local refused = false

-- Entries with the event in them, or nil if nothing changes; then whether the event was taken, and whether it is the newest.
local function with_event(kind, e, n, pane, value, keep)
  local w = WIDTH[kind]
  local newest = n > 0 and unpack('<I4', e, (n - 1) * w + 1) or pane
  if pane <= newest - keep then return nil, false end
  local k, at = n, newest
  while k > 0 do
    if at <= pane then break end
    k = k - 1
    if k > 0 then at = unpack('<I4', e, (k - 1) * w + 1) end
  end
  local here = k > 0 and at == pane
  local cut, entry = k * w, nil
  if kind == 0 then
    local _, c = nil, 0
    if here then _, c = unpack('<I4I4', e, cut - 7) end
    if c >= U32 then refused = true return nil, true end
    entry = pack('<I4I4', pane, c + 1)
  elseif kind == 1 then
    local _, c, s = nil, 0, 0
    if here then _, c, s = unpack('<I4I4i8', e, cut - 15) end
    if c >= U32 or (value > 0 and s > MOST - value) or (value < 0 and s < -MOST - value) then
      refused = true
      return nil, true
    end
    entry = pack('<I4I4i8', pane, c + 1, s + value)
  elseif kind == 4 then
    local seen, after = 0, k
    while k > 0 do
      local p, h = unpack('<I4I4', e, (k - 1) * 8 + 1)
      if p ~= pane then break end
      if h == value then return nil, true end
      if h > value then after = k - 1 end
      seen = seen + 1
      k = k - 1
    end
    if seen >= 64 then return nil, true end
    cut, here = after * 8, false
    entry = pack('<I4I4', pane, value)
  else
    if here then
      local _, v = unpack('<I4i8', e, cut - 11)
      if (kind == 2 and v <= value) or (kind == 3 and v >= value) then return nil, true end
    end
    entry = pack('<I4i8', pane, value)
  end
  local first = 1
  if pane > newest then
    while first <= cut and unpack('<I4', e, first) <= pane - keep do first = first + w end
  end
  return sub(e, first, here and cut - w or cut) .. entry .. sub(e, cut + 1), true, n == 0 or pane > newest
end

-- The value with the event in it and how many seconds it may matter, or nil if it stays as it is.
local function after_event(old, ops)
  local _, add, n_accs, now, id, ring = unpack('<BBI2I4c8c8', ops, 1)
  if add == 0 then return nil end
  local order, from, to, keeps, untils, known = {}, {}, {}, {}, {}, 0
  if old then
    local size = #old
    if size < 12 or sub(old, 1, 4) ~= 'RIW1' or unpack('<I4', old, 5) ~= size then return nil end
    known = unpack('<I4', old, 9)
    local at = 13
    while at <= size do
      if at + 19 > size then return nil end
      local digest, kind, _, count, keep, till = unpack('<c8BBI2I4I4', old, at)
      local w = WIDTH[kind]
      local stop = w and at + 20 + count * w
      if not w or stop > size + 1 or from[digest] then return nil end
      order[#order + 1] = digest
      from[digest], to[digest], keeps[digest], untils[digest] = at, stop - 1, keep, till
      at = stop
    end
  end
  local has_id = id ~= NO_ID
  if has_id and from[ring] then
    for p = from[ring] + 20, to[ring], 8 do
      if sub(old, p, p + 7) == id then return nil end
    end
  end
  local made, end_of_ids, taken = {}, 0, false
  for i = 0, n_accs - 1 do
    local digest, kind, applies, _, keep, life, pane, limit, value = unpack('<c8BBI2I4I4I4I4i8', ops, 25 + 36 * i)
    if applies == 1 then
      local e, n, w, cut_off = '', 0, WIDTH[kind], false
      local till = now + life
      if till > U32 then till = U32 end
      if till > end_of_ids then end_of_ids = till end
      if from[digest] then
        if unpack('<B', old, from[digest] + 8) ~= kind then return nil end
        if keeps[digest] > keep then keep = keeps[digest] end
        e = sub(old, from[digest] + 20, to[digest])
        n = #e / w
        while n > 0 and unpack('<I4', e, (n - 1) * w + 1) > limit do
          n = n - 1
          cut_off = true
        end
        if cut_off then
          e = sub(e, 1, n * w)
          known = now + 1
        end
      end
      local with, took, newer = with_event(kind, e, n, pane, value, keep)
      taken = taken or took
      local passed = from[digest] and untils[digest] < now
      if (cut_off or passed) and not with then with = e end
      if with then
        if not from[digest] then
          order[#order + 1] = digest
        elseif not (newer or passed) or untils[digest] > till then
          till = untils[digest]
        end
        untils[digest] = till
        made[digest] = pack('<c8BBI2I4I4', digest, kind, 0, #with / w, keep, till) .. with
      end
    end
  end
  if not taken then return nil end
  if has_id then
    local e = ''
    if from[ring] then
      e = sub(old, from[ring] + 20, to[ring])
      if untils[ring] > end_of_ids then end_of_ids = untils[ring] end
    else
      order[#order + 1] = ring
    end
    e = sub(e, -56) .. id
    untils[ring] = end_of_ids
    made[ring] = pack('<c8BBI2I4I4', ring, 5, 0, #e / 8, 0, end_of_ids) .. e
  end
  if next(made) == nil then return nil end
  local parts, total, last = {''}, 12, 0
  for i = 1, #order do
    local digest = order[i]
    local part = made[digest]
    if not part and untils[digest] >= now then part = sub(old, from[digest], to[digest]) end
    if part then
      parts[#parts + 1] = part
      total = total + #part
      if untils[digest] > last then last = untils[digest] end
    end
  end
  parts[1] = pack('<c4I4I4', 'RIW1', total, known)
  return concat(parts), last - now
end

-- The same for what comes most: no id, the sections of this plan and no others, in its order, and the event in the newest
-- pane of each or in a newer one. Third: it is not that.
local function after_usual(old, ops)
  local size = #old
  if size < 12 then return nil, nil, true end
  local _, add, n_accs, now, id = unpack('<BBI2I4c8', ops, 1)
  local magic, total, known = unpack('<c4I4I4', old, 1)
  if magic ~= 'RIW1' or total ~= size or id ~= NO_ID then return nil, nil, true end
  if add == 0 then return nil end
  local body, copied, at, last = '', 13, 13, 0
  for i = 25, 24 + 36 * n_accs, 36 do
    if at + 19 > size then return nil, nil, true end
    local digest, kind, applies, _, keep, life, pane, limit, value = unpack('<c8BBI2I4I4I4I4i8', ops, i)
    local section, its_kind, _, count, kept, till = unpack('<c8BBI2I4I4', old, at)
    local w = WIDTH[kind]
    local stop = at + 20 + count * w
    if section ~= digest or its_kind ~= kind or kind > 3 or count == 0 or stop > size + 1 then return nil, nil, true end
    if till < now then return nil, nil, true end
    if applies == 1 then
      local newest, c, s, entry
      if kind == 1 then newest, c, s = unpack('<I4I4i8', old, stop - 16)
      elseif kind == 0 then newest, c = unpack('<I4I4', old, stop - 8)
      else newest, c = unpack('<I4i8', old, stop - 12) end
      if newest > limit or pane < newest then return nil, nil, true end
      local here = pane == newest
      if kind == 1 then
        if not here then c, s = 0, 0 end
        if c >= U32 or (value > 0 and s > MOST - value) or (value < 0 and s < -MOST - value) then return nil, nil, true end
        entry = pack('<I4I4i8', pane, c + 1, s + value)
      elseif kind == 0 then
        if not here then c = 0 end
        if c >= U32 then return nil, nil, true end
        entry = pack('<I4I4', pane, c + 1)
      else
        if here and ((kind == 2 and c < value) or (kind == 3 and c > value)) then value = c end
        entry = pack('<I4i8', pane, value)
      end
      if here then
        body = body .. sub(old, copied, stop - w - 1) .. entry
      else
        if kept > keep then keep = kept end
        if now + life > till then till = now + life end
        if till > U32 then till = U32 end
        local from = at + 20
        while from < stop and unpack('<I4', old, from) <= pane - keep do from = from + w end
        count = (stop - from) / w + 1
        local head = pack('<c8BBI2I4I4', digest, kind, 0, count, keep, till)
        body = body .. sub(old, copied, at - 1) .. head .. sub(old, from, stop - 1) .. entry
        total = total + w - (from - at - 20)
      end
      copied = stop
    end
    if till > last then last = till end
    at = stop
  end
  if at ~= size + 1 then return nil, nil, true end
  if body == '' then return nil end
  local head = total == size and sub(old, 1, 12) or pack('<c4I4I4', 'RIW1', total, known)
  return head .. body .. sub(old, copied), last - now
end

local n = #ARGV - 1
local first = #KEYS - n
local out = {false}
if first == 1 then
  out[1] = redis.call('HGET', KEYS[1], 'id')
  if out[1] ~= ARGV[1] then return {out[1]} end
end
local new, life = {}, {}
for i = 1, n do
  local old = redis.pcall('GET', KEYS[first + i])
  if old and #old > 4194304 then old = {err = 'WRONGTYPE a value of this size is not one of ours'} end
  out[i + 1] = old
  if type(old) ~= 'table' then
    local unusual = true
    if old then new[i], life[i], unusual = after_usual(old, ARGV[i + 1]) end
    if unusual then new[i], life[i] = after_event(old, ARGV[i + 1]) end
  end
end
if not refused then
  for i = 1, n do
    if new[i] then redis.call('SET', KEYS[first + i], new[i], 'EX', math.max(life[i], 1)) end
  end
end
return out
"""

# KEYS: the registry. ARGV: an id in case a new one is needed; then field and moment of each accumulator that must be in it.
# What is known of a field stays, unless the moment stands behind "!", as after a backfill. Returns the whole registry.
_REGISTER = """
local changed = redis.call('HEXISTS', KEYS[1], 'id') == 0
for i = 2, #ARGV, 2 do
  local field, moment = ARGV[i], ARGV[i + 1]
  local forced = string.sub(moment, 1, 1) == '!'
  if forced then moment = string.sub(moment, 2) end
  if forced or redis.call('HEXISTS', KEYS[1], field) == 0 then
    if redis.call('HGET', KEYS[1], field) ~= moment then
      redis.call('HSET', KEYS[1], field, moment)
      changed = true
    end
  end
end
if changed then redis.call('HSET', KEYS[1], 'id', ARGV[1]) end
return redis.call('HGETALL', KEYS[1])
"""


class _Script:
    """A script and the name under which a server knows it."""

    def __init__(self, text: str) -> None:
        self.text = text.strip().encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def call(self, keys: Sequence[bytes], arguments: Sequence[bytes], *, whole: bool = False) -> bytes:
        """The command, by name or with the whole text."""
        name, body = (b"EVAL", self.text) if whole else (b"EVALSHA", self.sha)
        return encode(name, body, b"%d" % len(keys), *keys, *arguments)


_ADD_SCRIPT = _Script(_ADD)
_REGISTER_SCRIPT = _Script(_REGISTER)


class _Changed(Exception):  # noqa: N818 - no error: the registry is another one than we know
    """The registry has to be read again."""


class RedisWindowsStats(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the requests so far. No keys, no values."""

    requests: int
    unavailable: int  # requests that got nothing
    held_back: int  # of those, not sent, because Redis had failed just now
    foreign: int  # entities whose value is not one of ours: another type, truncated, altered
    round_trips: int
    registrations: int  # readings of the registry
    scripts_sent: int  # whole, to a server that did not know them
    connections: int  # opened
    evicts: (
        bool  # Redis may drop values when its memory is full: counts would start at zero without a sign of it
    )
    state: str  # of the door: open, closed, probing
    last_error: str  # what went wrong last, without addresses, keys and values

    @property
    def healthy(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self.state == State.OPEN.value


class RedisWindows:
    """Carries requests to Redis and values back. Safe to use from any thread, greenlet and process.

    Args:
        url: see redis_link.py. prefix: of all keys: letters, digits, `_.:-`, and one hash tag in braces.
        timeout_ms: the most that one request waits, whatever time it has left.
    Raises: ConfigError. Nothing is opened.
    """

    def __init__(
        self, url: str, *, prefix: str = "ri", timeout_ms: float = 100.0, clock: Clock | None = None
    ) -> None:
        if not isinstance(prefix, str) or not re.fullmatch(
            r"[\w.:-]*(\{[\w.:-]+\})?[\w.:-]*", prefix, re.ASCII
        ):
            raise ConfigError(
                f"Expected a prefix of letters, digits, `_.:-` and at most one {{tag}}, got {clip(prefix)}"
            )
        if (
            isinstance(timeout_ms, bool)
            or not isinstance(timeout_ms, (int, float))
            or not 0 < timeout_ms <= 60_000
        ):
            raise ConfigError(
                f"Expected timeout_ms between 0 and 60,000 milliseconds, got {clip(timeout_ms)}",
                hint="it is what a request waits for its windows at most",
            )
        self._link = RedisLink(url)
        self._prefix = prefix
        self._timeout_s = timeout_ms / 1e3
        self._clock = clock or SystemClock()
        self._registry_key = f"{prefix}:windows".encode()
        self._one_step = not self._link.is_cluster or "{" in prefix
        self._groups: dict[str, WindowGroup] = {}
        self._starts: dict[str, bytes] = {}  # of keys, by entity
        self._id = b""  # of the registry; empty: not read yet
        self._declared: set[tuple[str, bytes, int]] = set()  # what is in the registry that we know
        self._requests = self._unavailable = self._held_back = self._foreign = 0
        self._registrations = self._scripts_sent = 0
        self._evicts = False
        self._last_error = ""
        self._begin()

    def _begin(self) -> None:
        """In a new process: nothing of the parent's is under way here."""
        self._pid = os.getpid()
        self._door = Backoff()
        self._lock = threading.RLock()  # a signal handler may score, too

    def __repr__(self) -> str:
        return f"<RedisWindows {self._prefix!r} over {self._link!r}>"

    # --- accumulators ---------------------------------------------------------------------------------------------

    def declare(self, group: WindowGroup) -> None:
        """Take over the state of a group; call it again when the group has new accumulators. Asks nobody."""
        known = self._groups.setdefault(group.name, group)
        if known is not group:
            raise ConfigError(f"Expected one group of windows of {clip(group.name)}")
        self._starts[group.name] = f"{self._prefix}:{group.name}:".encode()
        if not self._wanted() <= self._declared:
            self._id = b""

    def _wanted(self) -> set[tuple[str, bytes, int]]:
        return {
            (group.name, one["digest"], one["keep_panes"])
            for group in self._groups.values()
            for one in group.accumulators
            if one["kind"] != "ids"
        }

    def _register(self, timeout_s: float, moments: dict[tuple[str, bytes], int] | None = None) -> None:
        """Read the registry, with what is new to it; let every group know since when it is complete.

        Raises: LinkError.
        """
        wanted = self._wanted()
        now = b"%d" % self._clock.wall_ns()
        arguments = [secrets.token_bytes(8)]
        for name, digest, keep in sorted(wanted):
            forced = (moments or {}).get((name, digest))
            arguments += [_field(name, digest, keep), now if forced is None else b"!%d" % forced]
        key = self._registry_key
        replies = self._link.request(
            [(key, _REGISTER_SCRIPT.call([key], arguments)), (key, encode(b"INFO", b"memory"))],
            timeout_s=timeout_s,
        )
        if type(replies[0]) is ErrorReply and replies[0].code == "NOSCRIPT":
            self._scripts_sent += 1
            replies[0] = self._link.request(
                [(key, _REGISTER_SCRIPT.call([key], arguments, whole=True))], timeout_s=timeout_s
            )[0]
        registry = _registry(replies[0])
        self._registrations += 1
        self._evicts = _evicts(replies[1])
        for name, digest, keep in wanted:
            _set_since(self._groups[name], digest, keep, registry)
        self._declared = wanted
        self._id = registry.id

    # --- requests -------------------------------------------------------------------------------------------------

    def exchange(
        self, entities: Sequence[Entity], *, add: bool, timeout_s: float | None = None
    ) -> list[Value] | None:
        """Values of the entities as they were before this request's event, which is then in them if `add`.

        Returns: one value each, for `remote_read`; None if Redis did not answer: all windows are unavailable then, and
        whether the event was added is not known. Never raises for what Redis does.
        """
        if not entities:
            return []
        if self._pid != os.getpid():
            self._begin()
        self._requests += 1
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        start_ns = self._clock.monotonic_ns()
        with self._lock:
            permit = self._door.admit(start_ns)
        if permit is None:
            self._held_back += 1
            self._unavailable += 1
            return None
        failure: str | None = None
        try:
            for _ in range(_TRIES):
                left_s = timeout_s - (self._clock.monotonic_ns() - start_ns) / 1e9
                try:
                    if not self._id:
                        self._register(left_s)
                        left_s = timeout_s - (self._clock.monotonic_ns() - start_ns) / 1e9
                    values = self._round(entities, add, left_s)
                except _Changed:
                    self._id = b""
                    continue
                self._report(permit, None)
                return values
            failure = "the registry changed again and again"
        except LinkError as exc:
            failure = str(exc)
            if isinstance(exc, LinkTimeout) and timeout_s < _BLAMELESS_S and self._door.state is State.OPEN:
                self._unavailable += 1
                return None
        except BaseException:  # a greenlet that is killed here must not leave the door waiting for its probe
            if self._door.state is not State.OPEN:
                self._report(permit, "interrupted")
            raise
        self._report(permit, failure)
        self._unavailable += 1
        return None

    def _report(self, permit: int, failure: str | None) -> None:
        with self._lock:
            if failure is None:
                self._door.succeeded(permit)
            else:
                self._last_error = failure
                self._door.failed(permit, self._clock.monotonic_ns())

    def _round(self, entities: Sequence[Entity], add: bool, timeout_s: float) -> list[Value]:
        known = self._id
        keys = [self._starts[name] + key for name, key, _ in entities]
        operations = [ops for _, _, ops in entities]
        if self._one_step:
            reply = self._run_one([self._registry_key, *keys], [known, *operations], timeout_s)
            if not isinstance(reply, list) or not reply:
                raise LinkError(_wrong(reply))
            if reply[0] != known:
                raise _Changed
            values = reply[1:]
        else:
            calls = [(key, [key], [b"", ops]) for key, ops in zip(keys, operations, strict=True)]
            replies = self._run(calls, timeout_s, asks=True)
            values = []
            for reply in replies[1:]:
                if not isinstance(reply, list) or len(reply) != 2:
                    raise LinkError(_wrong(reply))
                values.append(reply[1])
            if replies[0] != known:
                if not add:
                    raise _Changed
                self._id = b""  # what was added is added: read since when it counts, not the values again
                self._register(timeout_s)
        if len(values) != len(keys):
            raise LinkError("Redis answered for other entities")
        return [self._value(value) for value in values]

    def _ask_id(self) -> bytes:
        return encode(b"HGET", self._registry_key, b"id")

    def _run_one(self, keys: Sequence[bytes], arguments: Sequence[bytes], timeout_s: float) -> Reply:
        reply = self._link.call(keys[1], _ADD_SCRIPT.call(keys, arguments), timeout_s=timeout_s)
        if type(reply) is ErrorReply:
            if reply.code == "NOSCRIPT":
                self._scripts_sent += 1
                whole = _ADD_SCRIPT.call(keys, arguments, whole=True)
                reply = self._link.call(keys[1], whole, timeout_s=timeout_s)
            elif "READONLY" in reply.text:
                self._link.distrust()  # what was the master is one no more
        return reply

    def _run(
        self, calls: Sequence[tuple[bytes | None, Sequence[bytes], Sequence[bytes]]], timeout_s: float, *, asks: bool = False
    ) -> list[Reply]:  # fmt: skip
        """Run the script once or several times; `asks`: and ask for the registry's id in the same flight."""
        commands = [(where, _ADD_SCRIPT.call(keys, arguments)) for where, keys, arguments in calls]
        if asks:
            commands.insert(0, (self._registry_key, self._ask_id()))
        replies = self._link.request(commands, timeout_s=timeout_s)
        if any(type(reply) is ErrorReply and "READONLY" in reply.text for reply in replies):
            self._link.distrust()  # what was the master is one no more
        again = [
            i for i, reply in enumerate(replies) if type(reply) is ErrorReply and reply.code == "NOSCRIPT"
        ]
        if again:
            self._scripts_sent += 1
            whole = []
            for i in again:
                where, keys, arguments = calls[i - asks]
                whole.append((where, _ADD_SCRIPT.call(keys, arguments, whole=True)))
            for i, reply in zip(again, self._link.request(whole, timeout_s=timeout_s), strict=True):
                replies[i] = reply
        return replies

    def _value(self, reply: Reply) -> Value:
        if reply is None or type(reply) is bytes:
            return reply
        if type(reply) is ErrorReply and reply.code == "WRONGTYPE":
            self._foreign += 1
            return False
        raise LinkError(_wrong(reply))

    def malformed(self) -> None:
        """Count a value that `remote_read` refused."""
        self._foreign += 1

    # --- care -----------------------------------------------------------------------------------------------------

    def erase(self, name: str, key: bytes, *, timeout_s: float = 5.0) -> bool:
        """Forget one entity, whatever its value is; whether there was one. Raises: Unavailable."""
        where = self._starts.get(name, f"{self._prefix}:{name}:".encode()) + key
        try:
            reply = self._link.request([(where, encode(b"DEL", where))], timeout_s=timeout_s)[0]
        except LinkError as exc:
            raise Unavailable(f"the entity was not erased: {exc}", hint="try again") from exc
        if type(reply) is not int:
            raise Unavailable(f"the entity was not erased: {_wrong(reply)}", hint="try again")
        return reply > 0

    def set_since(self, name: str, digest: bytes, since_ns: int, *, timeout_s: float = 5.0) -> None:
        """Say, for all processes, from when on an accumulator is complete: after a backfill. Raises: Unavailable."""
        try:
            self._register(timeout_s, {(name, digest): since_ns})
        except LinkError as exc:
            raise Unavailable(f"the backfill was not recorded: {exc}", hint="try again") from exc

    def fill(self, requests: Iterable[Sequence[Entity]], *, timeout_s: float = 30.0) -> int:
        """Add many requests' events, in order, without reading: for history. Many go out together. Returns their number.

        Raises: Unavailable; how many of them were added is not known then.
        """
        done = 0
        batch: list[Sequence[Entity]] = []
        try:
            if not self._id:
                self._register(timeout_s)
            for request in requests:
                if request:
                    batch.append(request)
                if len(batch) == _BATCH:
                    done += self._fill(batch, timeout_s)
                    batch = []
            if batch:
                done += self._fill(batch, timeout_s)
        except LinkError as exc:
            raise Unavailable(
                f"the history was not added whole: {exc}", hint="erase what was added, and begin again"
            ) from exc
        return done

    def _fill(self, batch: Sequence[Sequence[Entity]], timeout_s: float) -> int:
        calls = []
        for request in batch:
            keys = [self._starts[name] + key for name, key, _ in request]
            operations = [ops for _, _, ops in request]
            if self._one_step:
                calls.append((keys[0], keys, [b"", *operations]))
            else:
                calls += [(key, [key], [b"", ops]) for key, ops in zip(keys, operations, strict=True)]
        for reply in self._run(calls, timeout_s):
            if not isinstance(reply, list):
                raise LinkError(_wrong(reply))
        return len(batch)

    def require(self) -> None:
        """Raise Unavailable with what went wrong last, if Redis does not answer now."""
        if not self.ready():
            raise Unavailable(
                f"the windows cannot be had: {self._last_error}", hint="try again when Redis answers"
            )

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether Redis answers now; reads the registry. For a readiness check, and before the first request."""
        try:
            self._register(timeout_s)
        except LinkError as exc:
            self._last_error = str(exc)
            return False
        return True

    @property
    def stats(self) -> RedisWindowsStats:
        """Counts of this process."""
        return RedisWindowsStats(
            requests=self._requests,
            unavailable=self._unavailable,
            held_back=self._held_back,
            foreign=self._foreign,
            round_trips=self._link.flights,
            registrations=self._registrations,
            scripts_sent=self._scripts_sent,
            connections=self._link.connections,
            evicts=self._evicts,
            state=self._door.state.value,
            last_error=self._last_error,
        )

    def close(self) -> None:
        """Close idle connections. The windows may be used again."""
        self._link.close()


def _wrong(reply: Reply) -> str:
    """What an unexpected reply may say in a message: its first word, never a key or a value."""
    if type(reply) is ErrorReply:
        return f"Redis answered {'READONLY' if 'READONLY' in reply.text else reply.code}"
    return "Redis answered something else than was asked for"


class _Registry(NamedTuple):
    id: bytes
    moments: dict[tuple[str, bytes, int], int]  # (entity, digest, panes kept) -> complete since, in ns


def _field(name: str, digest: bytes, keep: int) -> bytes:
    return f"{name}:{digest.hex()}:{keep}".encode()


def _registry(reply: Reply) -> _Registry:
    """Read the registry; what is in it and not understood is not ours, or of a later version."""
    if not isinstance(reply, list) or len(reply) % 2:
        raise LinkError(_wrong(reply))
    moments = {}
    # A server that sends lists for names sends no registry, and a list is no key.
    fields = {
        field: moment
        for field, moment in zip(reply[::2], reply[1::2], strict=True)
        if isinstance(field, bytes)
    }
    for field, moment in fields.items():
        if (
            isinstance(moment, bytes)
            and (found := re.fullmatch(rb"([^:]+):([0-9a-f]{64}):(\d{1,4})", field))
            and re.fullmatch(rb"-?\d{1,19}", moment)
            and 1 <= int(found[3]) <= MAX_KEEP
            and -(1 << 63) <= int(moment) < 1 << 63
        ):
            name = found[1].decode(errors="replace")
            moments[name, bytes.fromhex(found[2].decode()), int(found[3])] = int(moment)
    known = fields.get(b"id")
    if not isinstance(known, bytes) or not known:
        raise LinkError("the registry of windows in Redis is not one")
    return _Registry(known, moments)


def _evicts(reply: Reply) -> bool:
    """Whether INFO says that values are dropped when memory is full. Unknown where INFO is forbidden: then no."""
    return (
        isinstance(reply, bytes)
        and b"maxmemory_policy:" in reply
        and b"maxmemory_policy:noeviction" not in reply
        and b"maxmemory:0\r" not in reply
    )


def _set_since(group: WindowGroup, digest: bytes, keep: int, registry: _Registry) -> None:
    """Since when windows are complete that need `keep` panes, and since when those that need fewer.

    Whoever asked for n panes at some moment made everybody keep as many from then on.
    """
    kept = {n: at for (name, one, n), at in registry.moments.items() if (name, one) == (group.name, digest)}
    if keep not in kept:  # our own field, which somebody else has written over
        raise LinkError("the registry of windows in Redis is not one")
    if (
        longest := max(kept, default=keep)
    ) > keep:  # another release keeps more: cut nothing off that it needs
        _keep_more(group, digest, longest)
    since = {n: min(at for more, at in kept.items() if more >= n) for n in kept}
    deep = since[keep]
    fewer = max((n for n, at in since.items() if n < keep and at < deep), default=keep)
    group.set_since(digest, since[fewer], first_keep=fewer, deep_since_ns=deep)


def _keep_more(group: WindowGroup, digest: bytes, keep: int) -> None:
    for one in group.accumulators:
        if one["digest"] == digest:
            group.register(
                digest, one["kind"], one["pane_ns"], keep, calendar=one["calendar"], since_ns=one["since_ns"]
            )
