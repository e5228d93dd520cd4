"""The options of `export`, and which formats there are. Nothing here imports torch."""

import os
import re
from dataclasses import dataclass

from stylegan2_compress import arguments
from stylegan2_compress.arguments import argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs.directory import name_network_files


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        exporter: the module that has its subclass of `base.Exporter`.
        packages: what it needs.
        batches: whether `--batch` may be more than one image: 'any', 'fixed' (not dynamic) or 'one'.
        half: whether weights can be stored as FP16.
        runs_code: whether its files can contain code, which the runtime runs when it opens them.
    """

    exporter: str
    packages: tuple[str, ...] = ()
    batches: str = 'any'
    half: bool = True
    runs_code: bool = False


_ONNX = ('onnx', 'onnxscript', 'onnxruntime')
FORMATS = {
    'onnx': Format('onnx_graphs:OnnxExporter', _ONNX),
    'openvino': Format('openvino_models:OpenVINOExporter', (*_ONNX, 'openvino')),
    'torch': Format('torch_programs:TorchExporter', runs_code=True),
    'web': Format('web_page:WebExporter', _ONNX, batches='one'),
    'executorch': Format('executorch_programs:ExecuTorchExporter', ('executorch',), batches='fixed', half=False),
    'litert': Format('litert_models:LiteRTExporter', ('litert_torch',), batches='fixed', half=False),
    'coreml': Format('coreml_packages:CoreMLExporter', ('coremltools',), batches='fixed', half=False),
}


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`.

    Raises:
        UserError: a value is not allowed, or does not go with the format.
    """

    format: str = argument(
        'What to write: onnx, openvino, torch, executorch, litert, coreml, or web, a page for browsers.',
        choices=FORMATS,
        metavar='NAME',
    )
    batch: str | None = argument(
        'Images at a time: a number, or dynamic for any.',
        None,
        default_text='dynamic of onnx and torch, else 1',
        metavar='N|dynamic',
    )
    weights: str = argument('How weights are stored.', 'fp32', choices=('fp32', 'fp16'), metavar='fp32|fp16')
    noise: str = argument('Noise inputs: constant, or none.', 'const', choices=('const', 'none'), metavar='const|none')
    out: str | None = argument(
        'Directory to write; with --single-file, the page.', None, default_text='FILE-FORMAT beside FILE', metavar='DIR'
    )
    teacher: str | None = argument('web: a second generator to show beside it.', None, metavar='PKL|RUN_DIR|URL')
    single_file: bool = argument('web: one HTML file, which opens from disk.', False, flag=True)
    webgpu: bool = argument('web: with WebGPU, where the browser has it.', False, flag=True)

    def __post_init__(self):
        arguments.check(self)
        name_network_files(self, 'teacher')
        if self.out == '':
            what = 'a page' if self.single_file else 'a directory'
            raise UserError(f'--out= is empty: name {what} to write, or leave it out.')
        if self.batch is not None and not re.fullmatch('dynamic|[1-9][0-9]{0,8}', self.batch):
            raise UserError(f'--batch={self.batch} must be a whole number of images, at least 1, or dynamic.')
        chosen = FORMATS[self.format]
        if chosen.batches == 'one' and self.batch not in (None, '1'):
            raise UserError(
                f'--batch={self.batch} does not go with --format={self.format}: it makes images one by one.'
            )
        if chosen.batches == 'fixed' and self.batch == 'dynamic':
            raise UserError(f'--batch=dynamic does not go with --format={self.format}: give a number.')
        if self.weights == 'fp16' and not chosen.half:
            raise UserError(f'--weights=fp16 does not go with --format={self.format}: its weights are stored as fp32.')
        for name in ('teacher', 'single_file', 'webgpu'):
            if getattr(self, name) and self.format != 'web':
                raise UserError(f'--{name.replace("_", "-")} goes with --format=web, not with --format={self.format}.')

    def out_for(self, file: str) -> str:
        """Where the export of a network file goes: a directory, or a page."""
        if self.out is not None:
            return self.out.rstrip('/') or '/'
        stem = os.path.splitext(file.rstrip('/'))[0]
        if '://' in file:
            stem = os.path.basename(stem)
        return f'{stem}-{self.format}' + ('.html' if self.single_file else '')
