"""`/admin/v1/protected`: texts that no reply may contain. No answer holds one."""

from __future__ import annotations

from service.api import admin_shapes as shapes
from service.api.admin_calls import Done, Request, page_limit
from service.errors import MalformedRequest, NotFound, StorageFailed, Unsealable
from service.firewall.registration import warning_of
from service.protection import Registry, TextStore, Watch
from service.records.protected_table import ProtectedRow
from service.tenancy.directory import Directory


class AdminTexts:
    """The operations. A change is looked for by this worker when it is answered, by the others half a second later."""

    def __init__(self, registry: Registry, store: TextStore, watch: Watch, tenants: Directory) -> None:
        self._registry = registry
        self._store = store
        self._watch = watch
        self._tenants = tenants

    async def create(self, request: Request) -> Done:
        """Register a text. Raises MalformedRequest with the reason where it is refused, Conflict."""
        asked = shapes.read(request.body, shapes.NewText)
        if asked.tenant:
            try:
                await self._tenants.find(asked.tenant)
            except NotFound:
                raise MalformedRequest("There is no such tenant.", pointer="/tenant") from None
        made = await self._registry.add(asked.kind, asked.name, asked.text, asked.tenant)
        await self._look()
        answer = shapes.text_shown(made.row, warning_of(made.alarms) or None, made.alarms.rate)
        return Done(201, answer, asked.tenant)

    async def list(self, request: Request) -> Done:
        """A page of them, oldest first."""
        query, limit = request.query, page_limit(request.query)
        rows = await self._store.list_protected(query.get("tenant"), limit=limit + 1, after=query.get("after"))
        shown = [shapes.text_shown(row) for row in rows[:limit]]
        return Done(200, shapes.Page(data=shown, next=shown[-1].id if len(rows) > limit else None))

    async def show(self, request: Request) -> Done:
        """One of them."""
        row = await self._found(request.subject)
        return Done(200, shapes.text_shown(row), row.tenant)

    async def remove(self, request: Request) -> Done:
        """Forget one."""
        row = await self._found(request.subject)
        await self._registry.remove(row.id)
        await self._look()
        return Done(200, {"id": row.id, "deleted": True}, row.tenant)

    async def _look(self) -> None:
        """Take in what has changed. Raises StorageFailed where another text cannot be opened: what was done is done."""
        try:
            await self._watch.refresh()
        except Unsealable as error:
            raise StorageFailed(str(error)) from None

    async def _found(self, text_id: str) -> ProtectedRow:
        row = await self._store.find_protected(text_id)
        if row is None:
            raise NotFound("There is no protected text with this id.")
        return row
