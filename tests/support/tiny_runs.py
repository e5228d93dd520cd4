"""Arguments of training runs of a few steps, for the tests of the loops."""

from pathlib import Path

ADAM = dict(class_name='torch.optim.Adam', lr=0.002, betas=[0, 0.99], eps=1e-8)


def loop_arguments(run_dir: Path, data: Path, labels: bool = False, **changes) -> dict:
    """Five steps of 16 images at 16×16, in ticks of two after the first; `run_dir` is made."""
    run_dir.mkdir(exist_ok=True)
    networks = dict(channel_base=64, channel_max=8)
    return (
        dict(
            run_dir=str(run_dir),
            training_set_kwargs=dict(
                class_name='training.dataset.ImageFolderDataset', path=str(data), use_labels=labels
            ),
            G_kwargs=dict(
                class_name='training.networks.Generator',
                z_dim=16,
                w_dim=16,
                mapping_kwargs=dict(num_layers=2),
                synthesis_kwargs=networks,
            ),
            D_kwargs=dict(class_name='training.networks.Discriminator', **networks),
            G_opt_kwargs=ADAM,
            D_opt_kwargs=ADAM,
            loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss'),
            batch_size=16,
            batch_gpu=16,
            total_kimg=0.08,
            kimg_per_tick=0.032,
            image_snapshot_ticks=None,
            network_snapshot_ticks=1,
            device='cpu',
        )
        | changes
    )


def start(run_dir: Path, **given) -> None:
    """Run our loop with these arguments in this directory, or go on there with it; wait for its end."""
    from stylegan2_compress.runs import launch, loops, resume, states
    from stylegan2_compress.runs.directory import RunDirectory

    run = RunDirectory(run_dir)
    args = resume.in_run_directory(dict(given, loop=loops.OUR_LOOP, num_gpus=1), run, own_student=False)
    states.require_one(run)
    with run.claimed():
        resume.write_start(run, args, None, {})
        launch.run(args)


EMBEDDING = 'module:tiny_embeddings:tiny@size=16'
LOSSES = ('ada', 'moments', 'kernel', 'images', 'regression', 'both')
BASELINES = ('StyleKDLoss', 'ITGCLoss', 'GCCLoss')


def labelled_data(directory: Path, make_dataset_zip) -> Path:
    """Twenty images of three classes."""
    return make_dataset_zip(directory, n=20, labels=3)


def labelled_teacher(directory: Path, make_generator, make_discriminator) -> str:
    """The path of a network pickle that fits them."""
    from stylegan2_compress import pickles

    path = str(directory / 'teacher.pkl')
    G, D = make_generator(c_dim=3).eval(), make_discriminator(c_dim=3).eval()
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return path


def compressing(name: str, teacher: str) -> dict:
    """Of the arguments of a loop: one of `LOSSES` or `BASELINES` with what it needs, and the D that it trains."""
    from stylegan2_compress import pickles
    from stylegan2_compress.losses.discriminators import pair_arguments

    if name == 'ada':
        augment = dict(class_name='training.augment.AugmentPipe', xflip=1, scale=1, brightness=1)
        return dict(
            loss_kwargs=dict(class_name='stylegan2_compress.AdversarialLoss'), augment_kwargs=augment, ada_target=0.6
        )
    if name in BASELINES:
        given = dict(teacher=teacher) | ({} if name == 'GCCLoss' else dict(embedding=EMBEDDING))
        given |= dict(langevin_steps=1) if name == 'ITGCLoss' else {}
        return dict(loss_kwargs=dict(given, class_name=f'stylegan2_compress.{name}'))
    if name == 'images':
        return dict(
            loss_kwargs=dict(
                class_name='stylegan2_compress.ImageDistillationLoss', teacher=teacher, embedding=EMBEDDING
            )
        )
    if name == 'regression':
        loss = 'stylegan2_compress.RegressionLoss+MomentMatchingLoss'
        return dict(loss_kwargs=dict(class_name=loss, teacher=teacher, embedding=EMBEDDING, samples=16))
    reference = dict(teacher=teacher, embeddings=[EMBEDDING], weights=[1])
    if name == 'moments':
        return dict(loss_kwargs=dict(reference, samples=16, memory=32, class_name='stylegan2_compress.DiMELoss'))
    if name == 'kernel':
        kernel = dict(reference, weights=None, balance=1, estimator='rbf', bank=16, refresh=1, memory=32)
        return dict(loss_kwargs=dict(kernel, class_name='stylegan2_compress.DiMELoss'))
    D_kwargs = dict(class_name='training.networks.Discriminator', channel_base=64, channel_max=8)
    D = pickles.load(teacher)['D']
    return dict(
        loss_kwargs=dict(
            reference,
            samples=16,
            large_batch=32,
            batch_size=16,
            images=1,
            images_kimg=1,
            images_embedding=EMBEDDING,
            class_name='stylegan2_compress.NickelDimeLoss',
        ),
        D_kwargs=pair_arguments(D_kwargs, D, 'teacher', {'b4': 16}),
    )
