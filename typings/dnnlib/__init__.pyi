from . import util as util
from .util import EasyDict as EasyDict
from .util import make_cache_dir_path as make_cache_dir_path
