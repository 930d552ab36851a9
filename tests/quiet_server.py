"""An HTTP server for tests whose clients may be killed while they wait for an answer."""

import contextlib
import sys
from collections.abc import Iterator
from http.server import HTTPServer, ThreadingHTTPServer
from threading import Thread
from typing import Any


class QuietServer(ThreadingHTTPServer):
    """Says nothing of a client that has left; every other error of a handler is still printed."""

    daemon_threads, block_on_close = True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints the traceback of the error, unless the client has left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def answering(server: HTTPServer) -> Iterator[str]:
    """It answers meanwhile, at this URL."""
    with server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
