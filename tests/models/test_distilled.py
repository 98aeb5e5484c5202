"""The student's target: the student's own answer one guided step of the teacher's further on."""

import copy

import pytest
import torch

from sb.losses import ConsistencyObjective
from sb.models.distilled import DistilledSmartBrush
from tests.models.test_smartbrush import a_batch, a_system


def a_student(steps=4, guidance=3.0, **other) -> DistilledSmartBrush:
    torch.manual_seed(0)
    source = a_system(text_dropout=0.0)
    torch.manual_seed(1)
    teacher = copy.deepcopy(a_system().denoiser)
    parts = {
        name: getattr(source, name)
        for name in ("denoiser", "vae", "text", "schedule", "ladder", "conditioning", "tasks", "object_share")
    }
    return DistilledSmartBrush(
        teacher=teacher, guidance=guidance, solver_steps=steps, **parts, objective=ConsistencyObjective(),
        optimizer=None, has_object=[True, False], total_images=100, batch_size=4, seed=0, **other,
    )


def x0_target(student, t: int):
    """The x0 that the student should name at time t, and what it is asked with."""
    batch = a_batch()
    draws = student.draw(batch.image, torch.Generator().manual_seed(0), 0.0)._replace(t=torch.full((4,), t))
    seen = {}
    target = student.target

    def note(batch, canvas, draws, x_t, cond):
        seen.update(canvas=canvas, x_t=x_t, cond=cond, target=target(batch, canvas, draws, x_t, cond))
        return seen["target"]

    student.target = note
    try:
        out = student.step(batch, draws)
    finally:
        del student.target
    return student.schedule.x0_of(seen["x_t"], seen["target"], draws.t), seen, out


def guided(student, seen, t):
    """The teacher's x0, asked twice."""
    empty = student.text.encode([""] * 4)
    shown = student.conditioning.network_input(seen["x_t"], seen["canvas"])
    cond = seen["cond"]
    answers = []
    for one in (cond, type(cond)(empty.tokens, empty.pooled, cond.level, cond.task)):
        with torch.no_grad():
            prediction, _ = student._placed()["teacher"](shown, torch.full((4,), t), one)
        answers.append(student.schedule.x0_of(seen["x_t"], prediction, torch.full((4,), t)))
    return answers[1] + student.guidance * (answers[0] - answers[1])


def inside(x, seen):
    return x * seen["canvas"].hole


def test_times_are_the_teachers_steps_and_cover_them_evenly():
    student = a_student(steps=4)
    assert student.times.tolist() == [999, 749, 499, 249, -1]
    draws = student.draw(torch.zeros(400, 3, 32, 32), torch.Generator().manual_seed(0), 0.0)
    assert draws.t.bincount(minlength=1000)[student.times[:-1]].tolist() == [100] * 4


def test_at_the_last_step_the_target_is_the_teachers_guided_answer():
    student = a_student()
    x0, seen, _ = x0_target(student, 249)
    torch.testing.assert_close(inside(x0, seen), inside(guided(student, seen, 249), seen), rtol=1e-3, atol=1e-4)


def test_before_the_target_is_the_students_answer_after_one_ddim_step():
    student = a_student()
    x0, seen, out = x0_target(student, 749)
    schedule, now, after = student.schedule, torch.full((4,), 749), torch.full((4,), 499)
    taught = guided(student, seen, 749)
    x = schedule.mix(taught, schedule.eps_of(seen["x_t"], taught, now), after)
    x = torch.where(seen["canvas"].hole > 0, x, seen["canvas"].around)
    with torch.no_grad():
        prediction, _ = student.denoiser(student.conditioning.network_input(x, seen["canvas"]), after, seen["cond"])
    own = schedule.x0_of(x, prediction, after)
    torch.testing.assert_close(inside(x0, seen), inside(own, seen), rtol=1e-3, atol=1e-3)
    assert not seen["target"].requires_grad and out["loss"].requires_grad


def test_the_teacher_stays_outside_and_no_gradient_reaches_it():
    student = a_student()
    out = student.step(a_batch(), student.draw(a_batch().image, torch.Generator().manual_seed(0), 0.0))
    out["loss"].backward()
    assert all(p.grad is None for p in student._outside["teacher"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.denoiser.parameters())
    assert not any("teacher" in name for name in student.state_dict()) and "teacher" in student.find_frozen()


def test_guidance_counts_and_must_be_above_zero():
    one, two = (x0_target(a_student(guidance=scale), 249)[0] for scale in (1.0, 3.0))
    assert not torch.allclose(one, two)
    part = a_student(guidance=3.0, guidance_until=0.5)  # of the four steps from 999, 749, 499 and 249
    torch.testing.assert_close(x0_target(part, 249)[0], one)
    for t in (999, 749):
        torch.testing.assert_close(x0_target(part, t)[0], x0_target(a_student(guidance=3.0), t)[0])
    with pytest.raises(ValueError, match="needs guidance above 0 and guidance_until in .0, 1., not 0 and 1"):
        a_student(guidance=0)


def test_flops_count_teacher_and_target():
    student, plain = a_student(), a_system()
    more = student.flops(32, True, True) - plain.flops(32, True, True)
    assert more == plain.flops(32, False, False)
