"""Model directories: what is written reads back, appears atomically, and every defect is named."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir
from megatron_entropic.hf.files import HFReader, write_hf
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.tables import hf_shapes
from tests import tiny_models


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hf_dir = tmp_path_factory.mktemp("hf") / "model"
    tiny_models.save("qwen2", hf_dir)
    return hf_dir


@pytest.fixture
def hf_dir(pristine: Path, tmp_path: Path) -> Path:
    """A sound directory with one file of weights, for the test to spoil."""
    return copy(pristine, tmp_path / "single")


@pytest.fixture
def sharded(pristine: Path, tmp_path: Path) -> Path:
    """The same model in several files with an index."""
    return copy(pristine, tmp_path / "sharded", max_shard_bytes=20_000)


def copy(source: Path, target: Path, **options: int) -> Path:
    with HFReader(source) as reader:
        write_hf(target, ((name, reader.read(name)) for name in reader.names()), source, **options)
    return target


def test_reader_gives_names_shapes_dtypes_and_values(hf_dir: Path, sharded: Path) -> None:
    expected = load_file(hf_dir / "model.safetensors")
    for directory in (hf_dir, sharded):
        with HFReader(directory) as reader:
            assert set(reader.names()) == set(expected)
            for name, tensor in expected.items():
                assert reader.shape(name) == tensor.shape
                assert reader.dtype(name) is torch.float32
                assert torch.equal(reader.read(name), tensor)
            with pytest.raises(CheckpointError, match=r"no tensor model\.nothing"):
                reader.read("model.nothing")


def test_sharding_keeps_to_the_size_and_the_index_is_transformers_own(sharded: Path) -> None:
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    sizes = {file: sum(tensor.nbytes for tensor in load_file(sharded / file).values()) for file in files}
    assert max(sizes.values()) <= 20_000
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert set(index["weight_map"].values()) == set(files)
    loaded = type(tiny_models.build("qwen2")).from_pretrained(sharded)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tiny_models.build("qwen2").parameters(), strict=True))


def test_companions_are_copied_byte_for_byte_and_the_rest_is_left(pristine: Path, tmp_path: Path) -> None:
    source = copy(pristine, tmp_path / "source")
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n\xff")
    (source / "LICENSE.txt").write_bytes(b"terms")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ tools }}")
    (source / "training_state.pt").write_bytes(b"not ours")
    (source / "modeling_code.py").write_bytes(b"not ours either")
    out = copy(source, tmp_path / "out")
    expected, found = ({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")} for folder in (source, out))
    assert len(found) == 8
    assert found == {name: content for name, content in expected.items() if name not in ("training_state.pt", "modeling_code.py")}


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_a_change_of_dtype_is_written_to_the_config(hf_dir: Path, tmp_path: Path, field: str) -> None:
    tiny_models.edit_config(hf_dir, **{"dtype": ..., field: "float32"})
    with HFReader(hf_dir) as reader:
        weights = [(name, reader.read(name)) for name in reader.names()]
    write_hf(tmp_path / "same", weights, hf_dir, dtype=torch.float32)
    write_hf(tmp_path / "cast", weights, hf_dir, dtype=torch.bfloat16)
    assert (tmp_path / "same/config.json").read_bytes() == (hf_dir / "config.json").read_bytes()
    before, after = (json.loads((path / "config.json").read_text()) for path in (hf_dir, tmp_path / "cast"))
    assert after == {**before, field: "bfloat16"}
    written = load_file(tmp_path / "cast/model.safetensors")
    assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in weights)


def test_an_earlier_directory_is_replaced_only_when_told_to_and_only_by_a_whole_one(hf_dir: Path, tmp_path: Path) -> None:
    out = copy(hf_dir, tmp_path / "hf")
    (tmp_path / ".hf.killed").mkdir()
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(8)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_hf(out, failing(), hf_dir, replace=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write_hf(out, [("a", torch.ones(8))], hf_dir, replace=True)
    assert torch.equal(load_file(out / "model.safetensors")["a"], torch.ones(8))
    assert [path.name for path in tmp_path.glob(".hf.*")] == []


def test_a_failure_half_way_leaves_nothing_behind(hf_dir: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(8)
        yield "b", torch.zeros(8)
        raise RuntimeError("stopped")

    parent = tmp_path / "exports"
    with pytest.raises(RuntimeError, match="stopped"):
        write_hf(parent / "model", failing(), hf_dir, max_shard_bytes=8)
    assert list(parent.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(hf_dir: Path) -> None:
    before = {path.name: path.read_bytes() for path in hf_dir.iterdir()}
    with pytest.raises(FileExistsError, match="exists already"):
        write_hf(hf_dir, [], hf_dir)
    assert {path.name: path.read_bytes() for path in hf_dir.iterdir()} == before


def test_sound_directories_pass(hf_dir: Path, sharded: Path) -> None:
    for directory in (hf_dir, sharded):
        check_hf_dir(directory, Architecture.from_hf(directory))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_all_problems_are_reported_at_once(hf_dir: Path) -> None:
    arch = Architecture.from_hf(hf_dir)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.2.self_attn.k_proj.bias"]
        tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(31)

    rewrite(hf_dir / "model.safetensors", spoil)
    (hf_dir / "tokenizer.json").unlink()
    (hf_dir / "config.json").unlink()
    with pytest.raises(CheckpointError) as error:
        check_hf_dir(hf_dir, arch)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{hf_dir}: 5 problem(s) in this model directory:"
    for text in (
        f"{hf_dir}/config.json: missing",
        f"{hf_dir}/tokenizer.json: missing",
        "tensor model.layers.2.self_attn.k_proj.bias [16] is missing",
        f"{hf_dir}/model.safetensors: tensor model.norm.weight has shape [31], config.json asks for [32]",
        f"{hf_dir}/model.safetensors: unexpected tensor model.layers.0.mlp.extra.weight",
    ):
        assert sum(text in line for line in lines) == 1, (text, lines)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("keep", [-1, 100, 4, 0])
def test_a_truncated_file_is_named_and_its_tensors_are_not_listed(hf_dir: Path, keep: int) -> None:
    truncate(hf_dir / "model.safetensors", keep)
    with pytest.raises(CheckpointError, match=r"1 problem\(s\).*\n.*model\.safetensors: truncated"):
        check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        HFReader(hf_dir)


def test_a_file_with_trailing_bytes_or_a_broken_header_is_named(hf_dir: Path) -> None:
    arch = Architecture.from_hf(hf_dir)
    file = hf_dir / "model.safetensors"
    sound = file.read_bytes()
    for content, problem in ((sound + b"x", "trailing bytes"), (sound[:8] + b"\x00" + sound[9:], "not safetensors")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem):
            check_hf_dir(hf_dir, arch)


def test_missing_and_broken_shards_are_named(sharded: Path) -> None:
    arch = Architecture.from_hf(sharded)
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    truncate(first, -4)
    with pytest.raises(CheckpointError, match=rf"1 problem\(s\).*\n{first}: truncated"):
        check_hf_dir(sharded, arch)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second}: missing, but model\.safetensors\.index\.json names it"):
        check_hf_dir(sharded, arch)
    with pytest.raises(CheckpointError, match=f"{second}: missing"):
        HFReader(sharded)


def test_no_weights_no_directory_and_a_bad_index_are_named(hf_dir: Path, sharded: Path, tmp_path: Path) -> None:
    arch = Architecture.from_hf(hf_dir)
    (hf_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        check_hf_dir(hf_dir, arch)
    with pytest.raises(CheckpointError, match="no such directory"):
        check_hf_dir(tmp_path / "nowhere", arch)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError, match="not a plain file name"):
        check_hf_dir(sharded, arch)


def test_tied_and_untied_heads_must_agree_with_the_config(hf_dir: Path) -> None:
    tiny_models.edit_config(hf_dir, tie_word_embeddings=True)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight is not model\.embed_tokens\.weight although config\.json says tie_word_embeddings=true"
    ):
        check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))
    rewrite(hf_dir / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))
    tiny_models.edit_config(hf_dir, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[99, 32\] is missing; .*tie_word_embeddings=false"):
        check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))


def test_a_tokenizer_that_does_not_fit_the_embedding_is_named(tmp_path: Path) -> None:
    tiny_models.save("llama", tmp_path, tokenizer_size=120)
    with pytest.raises(CheckpointError, match=r"tokenizer that does not fit the embedding: token 't119' has id 119, .* 99 rows"):
        check_hf_dir(tmp_path, Architecture.from_hf(tmp_path))


def test_the_index_must_tell_the_truth(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (first, _), (second, _) = Counter(content["weight_map"].values()).most_common(2)
    name = next(name for name, file in content["weight_map"].items() if file == first)
    content["weight_map"][name] = second
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"says tensor {name} is in {second}, it is in {first}"):
        check_hf_dir(sharded, Architecture.from_hf(sharded))


def test_shapes_cover_exactly_what_transformers_saves(tmp_path: Path) -> None:
    for kind in tiny_models.ARCHITECTURES:
        tiny_models.save(kind, tmp_path / kind)
        with HFReader(tmp_path / kind) as reader:
            assert {name: reader.shape(name) for name in reader.names()} == hf_shapes(Architecture.from_hf(tmp_path / kind))
