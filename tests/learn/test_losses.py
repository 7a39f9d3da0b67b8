"Losses against hand, MONAI and the metrics; gradients that stay finite and point the right way."
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from neuroseg.learn.losses import (DiceBCELoss, MixedDiceBCELoss, SegmentationLoss, SliceTverskyBCELoss,
                                   ThesisDiceLoss, slice_overlap, soft_dice)
from neuroseg.evaluation.metrics import dice
from neuroseg.evaluation.protocols import batch_soft_dice, thesis_dice


def case(seed=0, n=4, side=12, share=.3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n,1,side,side,generator=g)*2, (torch.rand(n,1,side,side,generator=g)<share).float()


@pytest.mark.parametrize('seed', range(10))
def test_soft_dice_agrees_with_the_metrics(seed):
    logits,targ = case(seed)
    p = logits.sigmoid()
    assert soft_dice(p, targ).item() == pytest.approx(batch_soft_dice(p.numpy(), targ.numpy()), abs=1e-5)
    hard = (p>.5).float()
    assert soft_dice(hard, targ, smooth=0).item() == pytest.approx(dice(hard.numpy()>0, targ.numpy()>0, empty=1.),
                                                                   abs=1e-6)


@pytest.mark.parametrize('smooth', [1e-5, 1., 10.])
def test_soft_dice_agrees_with_monai(smooth):
    losses = pytest.importorskip('monai.losses')
    logits,targ = case(3)
    theirs = losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=smooth, smooth_dr=smooth)(logits, targ)
    assert (1-soft_dice(logits.sigmoid(), targ, smooth)).item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize('batch_size', [1, 3, 4, 10])
def test_mean_over_batches_is_what_keras_reports(batch_size):
    logits,targ = case(1, n=10)
    p = logits.sigmoid()
    ours = np.mean([soft_dice(a,b).item() for a,b in zip(p.split(batch_size), targ.split(batch_size))])
    assert ours == pytest.approx(thesis_dice(p.numpy(), targ.numpy(), batch_size=batch_size), abs=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_soft_dice_is_symmetric_and_bounded(seed):
    logits,targ = case(seed)
    p = logits.sigmoid()
    assert soft_dice(p,targ).item() == pytest.approx(soft_dice(targ,p).item(), abs=1e-6)
    assert 0 <= soft_dice(p,targ).item() <= 1 and soft_dice(targ,targ).item()==1


@pytest.mark.parametrize('loss', [ThesisDiceLoss(), DiceBCELoss(), DiceBCELoss(.5,2.)])
@pytest.mark.parametrize('scale', [0., 1., 1e3])
@pytest.mark.parametrize('share', [0., .3, 1.])
def test_gradients_are_finite_everywhere(loss, scale, share):
    logits,targ = case(2, share=share)
    logits = (logits*scale).requires_grad_()
    value = loss(logits, targ)
    value.backward()
    assert math.isfinite(value.item()) and logits.grad.isfinite().all()


@pytest.mark.parametrize('loss', [ThesisDiceLoss(), DiceBCELoss()])
def test_gradients_point_to_the_truth(loss):
    _,targ = case(4)
    logits = torch.zeros_like(targ, requires_grad=True)
    loss(logits, targ).backward()
    assert (logits.grad[targ>0]<0).all() and (logits.grad[targ==0]>0).all()


@pytest.mark.parametrize('loss', [ThesisDiceLoss(), DiceBCELoss()])
def test_a_step_downhill_lowers_the_loss(loss):
    logits,targ = case(5)
    logits.requires_grad_()
    before = loss(logits, targ); before.backward()
    assert loss(logits-.1*logits.grad/logits.grad.abs().max(), targ) < before


def test_an_empty_batch_is_perfect_only_without_a_single_pixel():
    empty = torch.zeros(2,1,16,16)
    assert soft_dice(empty, empty).item()==1
    one = empty.clone(); one[0,0,3,3] = 1
    assert soft_dice(one, empty).item()==.5
    assert math.isnan(soft_dice(empty, empty, smooth=0).item())


def test_weights_of_the_two_terms():
    logits,targ = case(6)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targ).item()
    soft = ThesisDiceLoss()(logits, targ).item()
    for d,b in ((1,1), (0,1), (1,0), (.3,2.)):
        assert DiceBCELoss(d,b)(logits, targ).item() == pytest.approx(d*soft+b*bce, abs=1e-5)


def test_half_precision_counts_all_pixels():
    logits,targ = case(7, n=2, side=300)
    assert DiceBCELoss()(logits.bfloat16(), targ).item() == pytest.approx(DiceBCELoss()(logits, targ).item(), abs=5e-3)
    assert DiceBCELoss()(logits.bfloat16(), targ).dtype==torch.float32


@pytest.mark.parametrize('threshold', [.2, .5, .8])
def test_activation_then_decision(threshold):
    loss = SegmentationLoss(threshold)
    logits,_ = case(8)
    assert torch.equal(loss.decodes(loss.activation(logits)), logits > math.log(threshold/(1-threshold)))


@pytest.mark.parametrize('missed,wrong', [(.5,.5), (.7,.3), (.2,.8)])
def test_slice_overlap_agrees_with_monai(missed, wrong):
    losses = pytest.importorskip('monai.losses')
    logits,targ = case(5)
    # a mean over slices and channels, all of which hold tumour
    theirs = losses.TverskyLoss(alpha=wrong, beta=missed, smooth_nr=1, smooth_dr=1)(logits.sigmoid(), targ)
    assert (1-slice_overlap(logits.sigmoid(), targ, missed=missed, wrong=wrong)).item() == pytest.approx(theirs.item(),
                                                                                                         abs=1e-6)


def test_slices_without_tumour_leave_the_overlap_alone():
    logits,targ = case(6)
    more = torch.cat([targ, torch.zeros(3,1,12,12)])
    assert slice_overlap(torch.cat([logits, logits[:3]]).sigmoid(),
                         more).item() == pytest.approx(slice_overlap(logits.sigmoid(), targ).item(), abs=1e-6)


@pytest.mark.parametrize('weight', [0, .25, 1])
def test_the_mixed_loss_lies_between_its_parts(weight):
    logits,targ = case(7)
    pooled,slices = DiceBCELoss()(logits, targ), SliceTverskyBCELoss()(logits, targ)
    assert MixedDiceBCELoss(weight)(logits, targ).item() == pytest.approx(((1-weight)*pooled+weight*slices).item(),
                                                                          abs=1e-6)
    logits.requires_grad_()
    MixedDiceBCELoss(weight)(logits, targ).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum()>0
