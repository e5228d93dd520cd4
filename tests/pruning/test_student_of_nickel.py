"""Students of a teacher that NICKEL trained itself."""

import torch
from pickling import snapshot

from stylegan2_compress import pickles, pruning
from stylegan2_compress.networks.dual import DualDiscriminator


def test_it_starts_with_its_teachers_own_discriminator(tmp_path, make_generator, make_discriminator):
    D = make_discriminator()
    own = dict(D.init_kwargs)
    shape = {name: own.pop(name) for name in ('c_dim', 'img_resolution', 'img_channels')}
    pair = DualDiscriminator(**shape, student_kwargs=own, teacher_kwargs=own, matched_channels={})
    pickles.save(tmp_path / 'teacher.pkl', snapshot(make_generator(), pair.eval()))
    teacher = pickles.load(tmp_path / 'teacher.pkl')
    student = pruning.make_student(teacher, pruning.widths_for_ratio(teacher['G_ema'], 0.5))
    assert type(student['D']).__name__ == 'Discriminator'
    for name, weight in student['D'].named_parameters():
        assert torch.equal(weight, pair.student.get_parameter(name))
