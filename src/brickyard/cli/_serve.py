"""The workbench command, which serves a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from brickyard.base._errors import OptionError
from brickyard.runtime._progress import put, say


def workbench(
    yard: Annotated[Path, Option(help="Folder of components; created if it does not exist.")] = Path("bricks"),
    sources: Annotated[
        Path | None,
        Option(
            help="Folder of models, pictures and class names that the page may make bricks from.  [default: the folder "
            "sources in the yard]",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[bool, Option("--demo", help="Fill an empty yard with a small demo on digits.")] = False,
    host: Annotated[
        str, Option(help="Listen on this address; any but the local machine requires a token.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Listen on this port; 0 picks a free one.", min=0, max=65535)] = 8000,
    ask_token: Annotated[
        bool, Option("--token", help="Require a token on the local machine too, for machines that others use.")
    ] = False,
    open_page: Annotated[bool, Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a local web page for building classifiers from a yard."""
    import secrets
    import socket
    import sys

    from brickyard.base._lazy import package

    package("uvicorn", "workbench", "the workbench")
    from brickyard.workbench._app import create_app, sources_folder
    from brickyard.workbench._guard import LOCAL, is_local
    from brickyard.workbench._server import server
    from brickyard.yard._yard import Yard

    place = _bound(host, port)
    with place:
        local = is_local(host) and is_local(place.getsockname()[0])  # a name may lead elsewhere than it says
        token = None if local and not ask_token else secrets.token_urlsafe(24)
        names = (*LOCAL, host) if local else (*LOCAL, host, socket.gethostname(), socket.getfqdn())
        if sources is not None:
            sources = sources_folder(sources)  # before a yard is made
        new = not yard.exists()
        app = create_app(Yard(yard, create=True), sources=sources, token=token, hosts=names)
        if new:
            say(f"made a new yard: {yard}")
        if demo:
            app.state.makings.begin_demo()
        name = f"[{host}]" if ":" in host else host
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else name
        address = f"http://{shown}:{place.getsockname()[1]}/" + (f"?token={token}" if token else "")
        put(f"the workbench is at {address}  (Ctrl-C stops it)", sys.stderr)
        if open_page:
            import webbrowser

            webbrowser.open(address)
        try:
            server(app).run(sockets=[place])
        finally:
            app.state.makings.close()
            _end_of_threads()


def _end_of_threads() -> None:
    """End the process if a request still computes, in a thread that nothing can interrupt."""
    import threading

    from brickyard.cli import _signals

    own = threading.current_thread()
    for thread in [item for item in threading.enumerate() if item is not own and not item.daemon]:
        thread.join(0.5)
        if thread.is_alive():
            _signals.tell()
            _signals.end(_signals.seen() or 143)


def _bound(host: str, port: int) -> Any:
    """Open a listening socket.

    Raises:
        OptionError: The address cannot be used.
    """
    import socket

    if not host:
        raise OptionError(
            "option-address", "--host is empty, which would mean every address; give one, such as 127.0.0.1 or 0.0.0.0"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OptionError(
            "option-address", f"cannot listen on --host {host} --port {port}: {error.strerror or error}; try --port 0"
        ) from None
