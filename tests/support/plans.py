"""A run planned from the loop arguments of an ordinary one, without a command around it."""

from stylegan2_compress.compression.options import MethodOptions
from stylegan2_compress.compression.planning import compress
from stylegan2_compress.losses.loss_classes import methods_of
from stylegan2_compress.runs.plan import Plan


def compressed(desc, args, *, device=None, student=None, **options):
    """Name and loop arguments; `student` may be a path or the contents of a pickle, `device` where our loop runs.

    Prints what a run says before it starts.
    """
    if device is not None:
        args.device = device
    contents = None if isinstance(student, str) else student
    options = MethodOptions(student=student if contents is None else None, **options)
    plan = compress(Plan(desc, args), options, contents)
    for note in plan.notes:
        print(note)
    return plan.name, plan.args


def checked(loss_class, args=None, **arguments):
    """Let the methods of a loss class look at a run with these arguments of the loss; the warnings."""
    run = dict(batch_size=4, batch_gpu=4, num_gpus=1, device='cpu', G_kwargs={}) if args is None else args
    run = run | dict(loss_kwargs=dict(class_name=f'{loss_class.__module__}.{loss_class.__qualname__}'))
    return [warning for each in methods_of(loss_class, arguments) for warning in each.check(Plan('', run))]
