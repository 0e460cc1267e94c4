"""The application of the pods in tests: port 8080 answers with who asked, and through which proxies."""

import json
import socket
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer any request."""
        peer = self.client_address[0].removeprefix("::ffff:")
        told = {"peer": peer, "hops": self.headers.get_all("x-lab-hop", [])}
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class _Server(ThreadingTCPServer):
    """Not HTTPServer: it asks DNS for its own name first, and who would answer?"""

    address_family = socket.AF_INET6


with _Server(("::", 8080), _Handler) as _server:
    print("listening", flush=True)
    _server.serve_forever()
