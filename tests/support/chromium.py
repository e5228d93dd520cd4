"""A headless Chromium, driven through a pipe (the Chrome DevTools protocol), for tests that look at pages."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BINARY = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
TIMEOUT = 120  # Seconds for any answer; test machines are busy.


@contextlib.contextmanager
def chromium() -> Iterator['Page']:
    """A page in a browser of its own, which ends with the block."""
    # The browser reads commands from descriptor 3 and writes to 4, messages ending with a zero byte.
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        command = [
            BINARY, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--hide-scrollbars',
            '--remote-debugging-pipe', f'--user-data-dir={profile}', 'about:blank',
        ]  # fmt: skip
        redirected = ['bash', '-c', f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}', 'bash', *command]
        process = subprocess.Popen(
            redirected, pass_fds=[to_browser[0], from_browser[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            with open(to_browser[1], 'wb', buffering=0) as commands, open(from_browser[0], 'rb') as answers:
                page = Page(commands, answers)
                yield page
                page.send('Browser.close', session=False)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


class Page:
    """A tab. `events` are all that the browser has told so far: requests, console messages, exceptions."""

    def __init__(self, commands, answers):
        self.commands, self.answers = commands, answers
        self.buffer, self.count, self.events, self.session = b'', 0, [], None
        target = self.send('Target.createTarget', url='about:blank', session=False)['targetId']
        attached = self.send('Target.attachToTarget', targetId=target, flatten=True, session=False)
        self.session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.send(f'{domain}.enable')

    def send(self, method: str, session: bool = True, **params) -> dict:
        self.count += 1
        message = {'id': self.count, 'method': method, 'params': params}
        if session:
            message['sessionId'] = self.session
        self.commands.write(json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self.count:
                assert 'error' not in answer, (method, answer)
                return answer['result']

    def _receive(self) -> dict:
        while b'\0' not in self.buffer:
            received = os.read(self.answers.fileno(), 1 << 20)
            assert received, 'Chromium has ended.'
            self.buffer += received
        message, _zero, self.buffer = self.buffer.partition(b'\0')
        message = json.loads(message)
        if 'method' in message:
            self.events.append((message['method'], message['params']))
        return message

    def open(self, path: Path | str, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file or a URL, and wait until everything in it is there."""
        self.events.clear()
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send('Emulation.setDeviceMetricsOverride', **size)
        feature = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.send('Emulation.setEmulatedMedia', features=[feature])
        self.send('Page.navigate', url=path if isinstance(path, str) else path.resolve().as_uri())
        deadline = time.time() + TIMEOUT
        while self.evaluate('document.readyState') != 'complete' or self.evaluate('location.href') == 'about:blank':
            assert time.time() < deadline, f'{path} did not load.'
            time.sleep(0.05)

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        answer = self.send('Runtime.evaluate', expression=expression, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.time() + TIMEOUT
        while not self.evaluate(f'Boolean({expression})'):
            assert time.time() < deadline, expression
            time.sleep(0.02)

    def move_mouse(self, x: float, y: float) -> None:
        self.send('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ('keyDown', 'keyUp'):
            self.send('Input.dispatchKeyEvent', type=kind, key=key, code=key)

    def requests(self) -> list[str]:
        """URLs that the page asked for, itself included; what it holds itself (data:) needs no asking."""
        asked = [params['request']['url'] for method, params in self.events if method == 'Network.requestWillBeSent']
        return [url for url in asked if not url.startswith('data:')]

    def complaints(self) -> list[dict]:
        """Exceptions, console messages and what the browser logs about the page."""
        kinds = ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded')
        return [params for method, params in self.events if method in kinds]

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what fits the window."""
        data = self.send('Page.captureScreenshot', captureBeyondViewport=True, format='png')['data']
        Path(path).write_bytes(base64.b64decode(data))
