//! The products, look-ups and gradients of every storage on the CPU.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_kernels::{FrozenBuilder, FrozenMatrix, KernelError, Storage};
use burn::tensor::{Device, Tensor};
use common::{check_gradients, check_products, check_rows, numbers, relative, tensor, values};
use futures::executor::block_on;

#[test]
fn products_are_those_of_the_unpacked_matrix() {
    // Smaller than a block, a block, odd, wider and higher than a tile, and the shapes of SmolLM2-135M and stories260k.
    let shapes =
        [[1, 1], [3, 5], [7, 64], [64, 172], [172, 64], [192, 576], [700, 1100], [513, 513], [1025, 65]];
    for storage in Storage::ALL {
        for shape in shapes {
            // One token, the last batch that goes row by row, the first that does not, and many.
            for n in [1, 4, 5, 33] {
                block_on(check_products(storage, shape, n, &Device::flex()));
            }
        }
    }
}

#[test]
fn an_input_that_is_a_view_is_read_as_it_is_seen() {
    let device = Device::flex();
    for storage in Storage::ALL {
        let (frozen, plain) = block_on(common::matrix(storage, [70, 96], &device));
        for n in [2, 9] {
            let wide = tensor(numbers(n * 200, 7), [200, n], &device).transpose();
            let view: Tensor<2> = wide.slice([0..n, 11..107]);
            let right = view.clone().matmul(plain.clone().transpose());
            let found = frozen.apply(view);
            assert!(relative(&block_on(values(found)), &block_on(values(right))) < 1e-5);
        }
    }
}

#[test]
fn gradients_are_those_of_burn() {
    for storage in Storage::ALL {
        for n in [1, 6] {
            block_on(check_gradients(storage, [96, 172], n, &Device::flex()));
        }
    }
}

#[test]
fn without_a_graph_there_is_no_gradient_and_the_same_product() {
    let device = Device::flex();
    let (frozen, _) = block_on(common::matrix(Storage::Nf4, [40, 64], &device));
    let x = tensor(numbers(6 * 64, 8), [6, 64], &device);
    let plain = block_on(values(frozen.apply(x.clone())));
    let constant = frozen.apply(x.clone().autodiff());
    assert!(!constant.is_require_grad());
    assert_eq!(block_on(values(constant)), plain);
    // On a device that tracks, too.
    let tracking = device.autodiff();
    let (frozen, _) = block_on(common::matrix(Storage::Nf4, [40, 64], &tracking));
    assert_eq!(block_on(values(frozen.apply(x))), plain);
}

#[test]
fn rows_are_looked_up_and_cut_out() {
    for storage in Storage::ALL {
        block_on(check_rows(storage, [50, 172], &Device::flex()));
    }
}

#[test]
fn a_product_is_the_same_every_time() {
    for storage in Storage::ALL {
        let (frozen, _) = block_on(common::matrix(storage, [600, 700], &Device::flex()));
        for n in [1, 40] {
            let x = tensor(numbers(n * 700, 9), [n, 700], &Device::flex());
            let [a, b] = [frozen.apply(x.clone()), frozen.apply(x)].map(|y| block_on(values(y)));
            assert_eq!(a, b);
        }
    }
}

#[test]
fn values_may_come_in_any_pieces() {
    let device = Device::flex();
    let all = numbers(31 * 172, 10);
    for storage in Storage::ALL {
        let whole = FrozenMatrix::from_f32(storage, all.clone(), [31, 172], &device).unwrap();
        let whole = block_on(whole.to_f32()).unwrap();
        for size in [1, 100, 172, 173, 1000] {
            let mut builder = FrozenBuilder::new(storage, [31, 172], &device).unwrap();
            for piece in all.chunks(size) {
                builder.push(piece).unwrap();
                builder.push(&[]).unwrap();
            }
            let built = builder.finish().unwrap();
            assert_eq!((built.dims(), built.storage()), ([31, 172], storage));
            assert_eq!(block_on(built.to_f32()).unwrap(), whole, "{} in {size}s", storage.name());
        }
    }
}

#[test]
fn f32_is_exact_and_shares_its_tensor() {
    let all = numbers(6 * 5, 11);
    let matrix = FrozenMatrix::from_f32(Storage::F32, all.clone(), [6, 5], &Device::flex()).unwrap();
    assert_eq!(block_on(matrix.to_f32()).unwrap(), all);
    let tensor = matrix.tensor().unwrap();
    let again = FrozenMatrix::from_tensor(tensor.autodiff().require_grad());
    assert_eq!((again.storage(), again.bytes()), (Storage::F32, 120));
    assert!(!again.tensor().unwrap().is_require_grad());
    let packed = FrozenMatrix::from_f32(Storage::Bf16, all, [6, 5], &Device::flex()).unwrap();
    assert!(packed.tensor().is_none());
    assert_eq!(packed.bytes(), 6 * 3 * 4);
}

#[test]
fn too_few_and_too_many_values_are_counted() {
    let device = Device::flex();
    for storage in Storage::ALL {
        let count = |found| Some(KernelError::Count { rows: 3, columns: 4, found });
        let build = |given| FrozenMatrix::from_f32(storage, vec![0.0; given], [3, 4], &device).err();
        assert_eq!(build(11), count(11));
        assert_eq!(build(13), count(13));
        assert_eq!(build(8), count(8));
        assert_eq!(build(12), None);
        let mut builder = FrozenBuilder::new(storage, [3, 4], &device).unwrap();
        builder.push(&[0.0; 12]).unwrap();
        assert_eq!(builder.push(&[0.0]).err(), count(13));
        assert_eq!(builder.finish().err(), count(13));
    }
}

#[test]
fn what_is_no_number_is_named() {
    let device = Device::flex();
    for storage in Storage::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 12];
            values[6] = bad;
            let error = FrozenMatrix::from_f32(storage, values.clone(), [3, 4], &device).unwrap_err();
            let KernelError::NotFinite { row, column, value } = error else { panic!("{error}") };
            assert_eq!((row, column, value.to_bits()), (1, 2, bad.to_bits()));
            // And nothing comes of what was pushed.
            let mut builder = FrozenBuilder::new(storage, [3, 4], &device).unwrap();
            assert!(builder.push(&values).is_err());
            assert!(builder.push(&[1.0; 12]).is_err());
            assert!(builder.finish().is_err());
        }
    }
}

#[test]
fn a_scale_beyond_f16_is_refused_and_f32_takes_it() {
    let device = Device::flex();
    for (storage, fits, refused) in [
        (Storage::F32, f32::MAX, None),
        (Storage::Bf16, 3.3e38, Some(f32::MAX)),
        (Storage::Int8, 127.0 * 65504.0, Some(8.4e6)),
        (Storage::Nf4, 65504.0, Some(65505.0)),
    ] {
        let build = |x: f32| FrozenMatrix::from_f32(storage, vec![0.0, 0.0, 1.0, -x], [2, 2], &device);
        let stored = block_on(build(fits).unwrap().to_f32()).unwrap()[3];
        assert!((stored + fits).abs() <= fits * 0.005, "{}: {stored}", storage.name());
        if let Some(x) = refused {
            assert_eq!(build(x).unwrap_err(), KernelError::Magnitude { storage, row: 1, magnitude: x });
        }
    }
}

#[test]
fn a_matrix_without_rows_or_beyond_memory_is_refused() {
    let device = Device::flex();
    for storage in Storage::ALL {
        for [rows, columns] in [[0, 4], [4, 0], [usize::MAX, 2], [1 << 40, 1 << 40], [usize::MAX, usize::MAX]]
        {
            let error = FrozenBuilder::new(storage, [rows, columns], &device).unwrap_err();
            assert_eq!(error, KernelError::Size { rows, columns });
        }
    }
}

#[test]
#[should_panic(expected = "a frozen matrix of 40 x 64 and an input [6, 40]")]
fn an_input_of_the_wrong_width_is_named() {
    let device = Device::flex();
    let (frozen, _) = block_on(common::matrix(Storage::Nf4, [40, 64], &device));
    frozen.apply(tensor(vec![0.0; 240], [6, 40], &device));
}
