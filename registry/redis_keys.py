"""Names of the keys in Redis. One hash tag puts all of them into one slot, so that scripts work on a cluster.

{p}:meta       hash      schema, identity, bytes (where they are), events and audits (counts), last (cursor)
{p}:names      sorted set of task names
{p}:numbers    hash      last version number given out, by task; outlives the task
{p}:tasks      hash      task → {created, latest, versions, aliases}
{p}:events     stream    ids are <number>-<tag>, numbers without gaps
{p}:keys       hash      API key by name
{p}:uses       hash      digest → how many versions have it
{p}:blobs      hash      digest → object that holds its bytes
{p}:uploads    sorted set of objects no digest has: by when their upload began, or 0 to be removed
{p}:audit      stream    ids are <number>-0, numbers without gaps
{p}:leases     hash      what each replica told last, by its name

{p}:versions:<task>   hash   number → {digest, size, created, manifest}
{p}:order:<task>      sorted set of numbers
{p}:digests:<task>    hash   digest → number
{p}:moves:<task>      hash   alias → how many moves, <alias>:<n> → the n-th
{p}:object:<object>   string bytes, where they are kept in Redis
"""

from dataclasses import dataclass

WITHOUT_TASK = ("meta", "names", "numbers", "tasks", "events", "keys", "uses", "blobs", "uploads", "audit")
OF_TASK = ("versions", "order", "digests", "moves")  # in the order of lua/common.lua, as those above


@dataclass(frozen=True, slots=True)
class Keys:
    prefix: str

    def __call__(self, name: str) -> str:
        return f"{{{self.prefix}}}:{name}"

    def object(self, name: str) -> str:
        return self(f"object:{name}")

    def all(self, task: str | None = None) -> list[str]:
        """Return what every script gets; without a task, only what belongs to none."""
        found = [self(name) for name in WITHOUT_TASK]
        return found if task is None else found + [self(f"{name}:{task}") for name in OF_TASK]
