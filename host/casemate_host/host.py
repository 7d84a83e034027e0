"""One host: egress, supervisor, relay and front, started and stopped in their order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate.errors import CasemateError
from casemate_host.administration import Administration
from casemate_host.callers import Callers
from casemate_host.control import Control
from casemate_host.egress import Egress
from casemate_host.events import log
from casemate_host.front import Front
from casemate_host.metrics import Metrics
from casemate_host.metrics_page import MetricsPage
from casemate_host.relay import Relay
from casemate_host.standing import Board
from casemate_host.supervisor import Supervisor
from casemate_host.tracing import tracer_of
from casemate_host.usage import UsageFile

if TYPE_CHECKING:
    from casemate_host.config import HostConfig

_REPORT_S = 60.0


class Host:
    """Serves one enclave to the network until it is stopped."""

    def __init__(self, config: HostConfig) -> None:
        """Read the files that ``config`` names; raises CasemateError if one cannot be used."""
        self._config = config
        self.board = Board()
        enclave = config.enclave
        self.metrics = Metrics()
        self._relay = Relay(enclave.address, enclave.connections, self._lost)
        callers = Callers(config.callers.known, config.callers.anonymous)
        self._usage = UsageFile(config.quotas, callers.quotas) if config.quotas else None
        self._tracer = tracer_of(config.traces)
        self._front = Front(
            config.front,
            self._relay,
            self.board,
            callers=callers,
            metrics=self.metrics,
            tracer=self._tracer,
        )
        # Its own control connection: a scrape waits for no load.
        self._probe = Control(enclave.address)
        self.metrics.watch(self.board, self._probe)
        self._supervisor = Supervisor(
            enclave, Control(enclave.address), self.board, self._front.health
        )
        self._egress = Egress(config.egress, enclave.address) if config.egress else None
        self._administration = None
        if config.administration is not None:
            self._administration = Administration(
                config.administration, Control(enclave.address), self.board, self._supervisor
            )
        self._page: MetricsPage | None = None
        self._stopping = threading.Event()
        self._reporter = threading.Thread(target=self._report, name="report", daemon=True)

    @property
    def metrics_address(self) -> str | None:
        """Where the metrics page is, ``host:port``, if there is one."""
        return self._page.address if self._page else None

    @property
    def frames_address(self) -> str | None:
        """Where framed connections are taken, ``host:port``, if anywhere."""
        return self._front.frames_address

    def start(self) -> str:
        """Open the way out, listen, look for the enclave; return the bound ``host:port``."""
        if self._egress is not None:
            self._egress.start()
        try:
            if self._config.metrics is not None:
                self._page = MetricsPage(self._config.metrics.listen, self.metrics.registry)
            if self._administration is not None:
                self._administration.start()
            address = self._front.start()
        except CasemateError:
            if self._administration is not None:
                self._administration.stop()
            if self._egress is not None:
                self._egress.stop()
            raise
        if self._page is not None:
            self._page.start()
        self._supervisor.start()
        self._reporter.start()
        if self._usage is not None:
            self._usage.start()
        tls = self._config.front.tls is not None
        log.info("listening", address=address, tls=tls, frames=self.frames_address)
        return address

    def stop(self) -> None:
        """Refuse what is new, drain what is under way, close everything; later calls do nothing."""
        if self._stopping.is_set():
            return
        log.info("stopping")
        self._stopping.set()
        self._supervisor.stop()
        self._front.stop(self._config.front.drain_s)
        if self._usage is not None:
            self._usage.stop()
        self._relay.close()
        self._probe.interrupt()
        if self._administration is not None:
            self._administration.stop()
        if self._page is not None:
            self._page.stop()
        if self._egress is not None:
            self._egress.stop()
        self._reporter.join()
        self._tracer.close()
        log.info("stopped")

    def _lost(self) -> None:
        self._supervisor.nudge()

    def _report(self) -> None:
        while not self._stopping.wait(_REPORT_S):
            self._front.report()
            self._relay.tidy()
