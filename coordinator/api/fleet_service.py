"""FleetService: agents and pools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from coordinator.api.access import Caller
from coordinator.api.errors import rpc, streamed
from coordinator.api.limits import Limits
from coordinator.api.request_ids import check_request_id
from coordinator.api.run_messages import agent_message, pool_message
from coordinator.dispatch.bells import AGENTS, QUEUE, LocalBells, heard_within
from coordinator.store.views import Views
from headrace.v1 import fleet_pb2 as wire
from headrace.v1 import fleet_pb2_grpc as stubs

_POLL_S = 2.0


class FleetService(stubs.FleetServiceServicer):
    """Shows the fleet, and takes what people decide about it."""

    def __init__(self, views: Views, bells: LocalBells, limits: Limits) -> None:
        self._limits = limits
        self._views = views
        self._bells = bells

    async def _agents(self) -> list[wire.Agent]:
        return [agent_message(row) for row in await self._views.agents()]

    @rpc
    async def ListAgents(  # noqa: N802 - the wire's name
        self, request: wire.ListAgentsRequest, context: Any
    ) -> wire.ListAgentsResponse:
        """All agents that were ever here."""
        del request, context
        return wire.ListAgentsResponse(agents=await self._agents())

    @streamed
    async def WatchAgents(  # noqa: N802
        self, request: wire.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[wire.AgentChange]:
        """A snapshot, then each agent that changes."""
        del request, context
        shown: dict[str, wire.Agent] = {}
        with self._limits.stream(Caller.CLIENT), self._bells.listening(AGENTS, QUEUE) as bell:
            while True:
                agents = {agent.name: agent for agent in await self._agents()}
                if not shown:
                    yield wire.AgentChange(snapshot=wire.ListAgentsResponse(agents=agents.values()))
                else:
                    for name, agent in agents.items():
                        if shown.get(name) != agent:
                            yield wire.AgentChange(agent=agent)
                shown = agents
                await heard_within(bell, _POLL_S)

    @rpc
    async def ListPools(  # noqa: N802
        self, request: wire.ListPoolsRequest, context: Any
    ) -> wire.ListPoolsResponse:
        """All pools, with what stands before them."""
        del request, context
        return wire.ListPoolsResponse(pools=[pool_message(row) for row in await self._views.pools()])

    @rpc
    async def DrainAgent(  # noqa: N802
        self, request: wire.DrainAgentRequest, context: Any
    ) -> wire.Agent:
        """Drains an agent, or lets it work again. The same request again changes nothing."""
        del context
        check_request_id(request.request_id)
        await self._views.drain(request.request_id, request.agent, drained=not request.undo)
        return next(agent for agent in await self._agents() if agent.name == request.agent)

    @rpc
    async def PausePool(  # noqa: N802
        self, request: wire.PausePoolRequest, context: Any
    ) -> wire.Pool:
        """Pauses a pool, or resumes it. The same request again changes nothing."""
        del context
        check_request_id(request.request_id)
        await self._views.pause(request.request_id, request.pool, paused=request.paused)
        return next(pool_message(row) for row in await self._views.pools() if row["name"] == request.pool)
