"""`python -m flexpert_operator.local.kubeapi`: the embedded Kubernetes API as a process; `flexpert local` starts it."""

import argparse
import asyncio
import os
import signal
from pathlib import Path

from flexpert_operator.local.kubeapi.embedded import ServerConfig, serve


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="flexpert_operator.local.kubeapi", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=int, default=0, help="port to bind; 0 lets the system choose")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the bearer token of all clients")
    parser.add_argument("--ready-file", type=Path, help="file that gets the URL once the server listens")
    parser.add_argument("--state-file", type=Path, help="file in which objects survive a restart")
    parser.add_argument(
        "--tls-dir", type=Path, help="folder that keeps the certificate; default: beside the token file"
    )
    return parser.parse_args()


async def _main(arguments: argparse.Namespace, token: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tls_folder = arguments.tls_dir or arguments.token_file.resolve().parent
    config = ServerConfig(arguments.host, arguments.port, token, state_file=arguments.state_file, tls_folder=tls_folder)
    async with serve(config) as url:
        if arguments.ready_file:
            _write_whole(arguments.ready_file, url)
        print(url, flush=True)
        await stop.wait()


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = _arguments()
    token = arguments.token_file.read_text().strip()
    if not token:
        raise SystemExit(f"{arguments.token_file} is empty: it must hold the bearer token")
    asyncio.run(_main(arguments, token))


if __name__ == "__main__":
    main()
