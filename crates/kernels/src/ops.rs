//! The two operations as extensions of burn's backends, and the gradient of the product.

#[cfg(feature = "webgpu")]
use burn::backend::Cube;
use burn::backend::Dispatch;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::cpu;
#[cfg(feature = "webgpu")]
use crate::gpu;
use crate::storage::Layout;

/// Which side of the matrix a product contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `x Wᵀ`: over the columns. x: [n, columns] -> [n, rows]
    Columns,
    /// `x W`: over the rows. x: [n, rows] -> [n, columns]
    Rows,
}

impl Side {
    /// The side that the gradient of the input contracts.
    fn other(self) -> Self {
        match self {
            Self::Columns => Self::Rows,
            Self::Rows => Self::Columns,
        }
    }
}

/// What a backend has to bring. `packed` is `[rows, stride]`, as [`Layout`] says.
#[backend_extension(Flex, Cube: cfg(feature = "webgpu"), Autodiff)]
pub(crate) trait FrozenOps: Backend {
    /// The product of x with the matrix, or with its transpose.
    fn frozen_product(
        x: FloatTensor<Self>,
        packed: IntTensor<Self>,
        layout: Layout,
        side: Side,
    ) -> FloatTensor<Self>;

    /// The rows as numbers, [rows, columns].
    fn frozen_unpack(packed: IntTensor<Self>, layout: Layout) -> FloatTensor<Self>;
}

impl FrozenOps for Flex {
    fn frozen_product(
        x: FloatTensor<Self>,
        packed: IntTensor<Self>,
        layout: Layout,
        side: Side,
    ) -> FloatTensor<Self> {
        cpu::product(&x, &packed, layout, side)
    }

    fn frozen_unpack(packed: IntTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        cpu::unpack(&packed, layout)
    }
}

#[cfg(feature = "webgpu")]
impl FrozenOps for Cube {
    fn frozen_product(
        x: FloatTensor<Self>,
        packed: IntTensor<Self>,
        layout: Layout,
        side: Side,
    ) -> FloatTensor<Self> {
        gpu::product(x, packed, layout, side)
    }

    fn frozen_unpack(packed: IntTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        gpu::unpack(packed, layout)
    }
}

impl<B: FrozenOps, C: CheckpointStrategy> FrozenOps for Autodiff<B, C> {
    fn frozen_product(
        x: FloatTensor<Self>,
        packed: IntTensor<Self>,
        layout: Layout,
        side: Side,
    ) -> FloatTensor<Self> {
        // The matrix is a constant: backward needs it and the incoming gradient, nothing of the forward pass.
        let prepared = Product.prepare::<C>([x.node()]).compute_bound().stateful();
        let y = B::frozen_product(x.into_primitive(), packed.clone(), layout, side);
        match prepared {
            OpsKind::Tracked(tracked) => tracked.finish((packed, layout, side), y),
            OpsKind::UnTracked(untracked) => untracked.finish(y),
        }
    }

    fn frozen_unpack(packed: IntTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        Self::from_inner(B::frozen_unpack(packed, layout))
    }
}

/// The backward step of a product.
#[derive(Debug)]
struct Product;

impl<B: FrozenOps> Backward<B, 1> for Product {
    type State = (IntTensor<B>, Layout, Side);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (packed, layout, side) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::frozen_product(dy, packed, layout, side.other()));
    }
}

/// [`FrozenOps::frozen_product`] on whichever backend the tensors are.
pub(crate) fn product(x: Tensor<2>, packed: Tensor<2, Int>, layout: Layout, side: Side) -> Tensor<2> {
    let y = Dispatch::frozen_product(x.into_dispatch(), packed.into_dispatch(), layout, side);
    Tensor::from_dispatch(y)
}

/// [`FrozenOps::frozen_unpack`] on whichever backend the tensor is.
pub(crate) fn unpack(packed: Tensor<2, Int>, layout: Layout) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::frozen_unpack(packed.into_dispatch(), layout))
}
