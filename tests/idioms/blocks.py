"""Idioms of convolutional networks: branches, residuals, lists, gates, norms, layers that run several times."""

from __future__ import annotations

from idioms.writing import Writer, idiom


@idiom(3)
def plain(w: Writer, c: int, s: int) -> tuple[int, int]:
    out, kernel = w.width(), w.pick(1, 3)
    conv = w.conv(c, out, kernel)
    keyword = w.maybe(0.1)
    w.do(f"x = {conv}({'input=' if keyword else ''}x)")
    if w.maybe():
        w.do(f"x = {w.layer(f'nn.BatchNorm2d({out})', 'bn', 'norm')}(x)")
    w.activate()
    return out, s


@idiom(2)
def downsampling(w: Writer, c: int, s: int) -> tuple[int, int]:
    if s < 4:
        return c, s
    out = w.width()
    pool = (
        "F.max_pool2d(x, 2)",
        "F.avg_pool2d(x, kernel_size=2, stride=2)",
        "F.max_pool2d(input=x, kernel_size=3, stride=2, padding=1)",
        "x[:, :, ::2, ::2]",
        "x[..., 1::2, 1::2]",
        f"F.interpolate(x, size=({s // 2}, {s // 2}), mode='bilinear', align_corners=False)",
        "F.interpolate(x, scale_factor=0.5)",
        "F.max_pool2d(x, 2, return_indices=True)[0]",
        "F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))",
        f"F.adaptive_max_pool2d(x, {s // 2})",
        f"F.unfold(x, 2, stride=2).unflatten(1, ({c}, 4)).amax(2).unflatten(-1, ({s // 2}, {s // 2}))",
        "F.lp_pool2d(x, 2, 2)",
    )
    if w.maybe(0.4):
        w.do(f"x = {w.layer(f'nn.Conv2d({c}, {out}, 3, 2, 1)')}(x)")
    else:
        half = f"nn.AdaptiveMaxPool2d({s // 2})"
        layer = w.pick("nn.MaxPool2d(2)", "nn.AvgPool2d(2, 2)", half, "nn.LPPool2d(2, 2)")
        w.do(f"x = {w.layer(layer, 'pool')}(x)" if w.maybe(0.3) else f"x = {w.pick(*pool)}")
        w.do(f"x = {w.conv(c, out, 1)}(x)")
    w.activate()
    return out, s // 2


@idiom(2)
def residual(w: Writer, c: int, s: int) -> tuple[int, int]:
    inner, y = w.width(), w.local()
    first, last = w.conv(c, inner, w.pick(1, 3)), w.conv(inner, c, w.pick(1, 3))
    act = w.activated(f"{first}(x)")
    if act.count("(x)") > 1:
        w.do(f"{y} = {first}(x)")
        act = w.activated(y)
    w.do(f"{y} = {last}({act})")
    if w.maybe(0.4):
        w.do(f"{y} = {w.layer(f'nn.BatchNorm2d({c})', 'bn')}({y})")
    if w.maybe(0.3):
        gamma = w.parameter(c)
        w.do(
            w.pick(
                f"{y} = {gamma}.view(1, -1, 1, 1) * {y}",
                f"{y} = {y} * {gamma}[None, :, None, None]",
                f"{y} *= {gamma}[:, None, None]",
                f"{y} = {gamma}.reshape(-1, 1, 1).mul({y})",
                f"{y} = {y} * {gamma}.unsqueeze(-1).unsqueeze(-1)",
                f"{y} = torch.einsum('bchw,c->bchw', {y}, {gamma})",
            )
        )
    w.added(y, "x")
    if w.maybe():
        w.activate()
    return c, s


@idiom()
def option_a(w: Writer, c: int, s: int) -> tuple[int, int]:
    """A shortcut whose missing channels are zeros."""
    more, y = w.rng.randint(1, 4), w.local()
    out, stride = c + 2 * more, 2 if s >= 4 and w.maybe() else 1
    conv = w.layer(f"nn.Conv2d({c}, {out}, 3, {stride}, 1)")
    w.do(f"{y} = {conv}(x)")
    if stride == 2:
        w.do(f"x = {w.pick('x[:, :, ::2, ::2]', 'F.avg_pool2d(x, 1, 2)', 'F.max_pool2d(x, 1, stride=2)')}")
    w.do(
        w.pick(
            f"x = F.pad(x, (0, 0, 0, 0, {more}, {more}))",
            f"x = F.pad(x, pad=[0, 0, 0, 0, 0, {2 * more}], mode='constant', value=0.0)",
            f"x = F.pad(input=x, pad=(0, 0, 0, 0, {more}, {more}), value=0)",
            f"x = torch.cat([x, torch.zeros_like(x[:, :1]).repeat(1, {2 * more}, 1, 1)], 1)",
            f"x = torch.cat([x, x.new_zeros(x.size(0), {2 * more}, x.size(2), x.size(3))], dim=1)",
            f"x = torch.cat((x, torch.zeros(x.shape[0], {2 * more}, *x.shape[2:], dtype=x.dtype)), 1)",
            f"x = F.pad(x, (0, 0, 0, 0, 0, {y}.shape[1] - x.shape[1]))",
        )
    )
    w.added(y, "x")
    w.activate()
    return out, s // stride


@idiom()
def dense(w: Writer, c: int, s: int) -> tuple[int, int]:
    growth, count = w.rng.randint(2, 4), w.rng.randint(1, 3)
    convs = [f"nn.Conv2d({c + i * growth}, {growth}, 3, padding=1)" for i in range(count)]
    layers = w.layer(f"nn.ModuleList([{', '.join(convs)}])", "layers", "nodes")
    features = w.local()
    act = w.activated("torch.cat(features, 1)".replace("features", features))
    if act.count(features) > 1 and w.maybe(0.5):
        act = f"F.relu(torch.cat({features}, 1))"
    w.do(
        f"{features} = [x]",
        w.pick(
            f"for layer in {layers}:\n    {features}.append(layer({act}))",
            f"for i, layer in enumerate({layers}):\n    {features} += [layer({act})]",
            f"for i in range(len({layers})):\n    {features} = {features} + [{layers}[i]({act})]",
        ),
        f"x = torch.cat({features}, {w.pick('1', 'dim=1', 'dim=-3', 'axis=1')})",
    )
    out = c + growth * count
    if out > 12:
        w.do(f"x = {w.conv(out, 6, 1)}(x)")
        out = 6
    return out, s


@idiom(2)
def branches(w: Writer, c: int, s: int) -> tuple[int, int]:
    widths = [w.rng.randint(2, 5) for _ in range(w.rng.randint(2, 3))]
    convs = [w.conv(c, width, w.pick(1, 3)) for width in widths]
    names = [w.local() for _ in convs]
    for name, conv in zip(names, convs, strict=True):
        w.do(f"{name} = {conv}(x)")
        if w.maybe():
            w.activate(name)
    if w.maybe(0.2):
        names = names[::-1]
    w.do(f"x = {w.joined(names)}")
    return sum(widths), s


@idiom(3)
def halves(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Lists that chunk, split and unbind give: unpacked, whole, or one by one."""
    n = w.pick(2, 2, 3)
    width = w.rng.randint(2, 12 // n)
    conv = w.conv(c, n * width, w.pick(1, 3))
    y, parts = w.local(), w.local()
    w.do(f"{y} = {conv}(x)")
    pieces = w.pick(
        f"{y}.chunk({n}, 1)",
        f"{y}.chunk({n}, dim=1)",
        f"torch.chunk({y}, {n}, dim=1)",
        f"torch.chunk(input={y}, chunks={n}, dim=-3)",
        f"torch.split({y}, {width}, 1)",
        f"torch.split({y}, split_size_or_sections={width}, dim=1)",
        f"{y}.split({width}, dim=1)",
        f"{y}.split({y}.shape[1] // {n}, dim=1)",
        f"{y}.split([{', '.join([str(width)] * n)}], dim=1)",
        f"{y}.unflatten(1, ({n}, {width})).unbind(1)",
        f"{y}.view({y}.size(0), {n}, -1, {s}, {s}).unbind(dim=1)",
        f"{y}.reshape({y}.shape[0], {width}, {n}, {s}, {s}).unbind(2)",
        f"torch.unbind({y}.unflatten(1, (-1, {n})), dim=2)",
        f"torch.tensor_split({y}, {n}, dim=1)",
        f"[{y}[:, i * {width} : (i + 1) * {width}] for i in range({n})]",
        f"[{y}[:, i::{n}] for i in range({n})]",
    )
    w.do(f"{parts} = {pieces}")
    same = (
        f"x = torch.stack({parts}).amax(0)" if not pieces.startswith("[") or w.maybe() else f"x = sum({parts})",
        f"x = torch.stack({parts}, dim=1).mean(1)",
        f"x = torch.stack({parts}, -1).sum(-1)",
        f"x = sum({parts})",
        f"x = sum({parts}) / {n}",
        f"x = {parts}[0] * torch.sigmoid({parts}[1])",
        f"x = torch.maximum({parts}[0], {parts}[-1])",
        f"{', '.join('abc'[:n])} = {parts}\nx = a * b.sigmoid()",
        f"x = sum([p * p for p in {parts}])",
        f"x = torch.stack([F.relu(p) for p in {parts}], dim=2).softmax(2).amax(2)",
        f"x = torch.stack({parts}, 4).norm(dim=4)",
        f"x = torch.stack(list({parts})).prod(0)",
        f"x = torch.mean(torch.stack({parts}), dim=0)",
        f"x = {parts}[0]\nfor p in {parts}[1:]:\n    x = x + torch.tanh(p) * x",
    )
    whole = (
        f"x = torch.cat({parts}, 1)",
        f"x = torch.cat({parts}[::-1], dim=1)",
        f"x = torch.cat([F.relu(p) for p in {parts}], dim=1)",
        f"x = torch.cat([{parts}[-1], *{parts}[:-1]], axis=1)",
        f"x = torch.stack({parts}, 2).flatten(1, 2)",
        f"x = torch.stack({parts}, dim=1).flatten(1, 2)",
        f"{', '.join('abc'[:n])} = {parts}\nx = torch.cat([a, F.relu(b){', c' if n == 3 else ''}], 1)",
        f"first, *rest = {parts}\nx = torch.cat([first, *rest], 1)",
        f"x = torch.cat(list({parts}), 1)",
    )
    if w.maybe(0.6):
        w.do(w.pick(*same))
        return width, s
    w.do(w.pick(*whole))
    return n * width, s


@idiom()
def across_the_batch(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Halves of the channels as images of one batch, through one layer, and back."""
    if c % 2:
        return c, s
    conv = w.conv(c // 2, c // 2, 3)
    w.do(
        w.pick(
            f"b = x.shape[0]\nx = torch.cat(x.chunk(2, 1), 0)\nx = {conv}(x)\nx = torch.cat([x[:b], x[b:]], 1)",
            f"x = {conv}(torch.cat(x.split({c // 2}, 1)))\nx = torch.cat(x.chunk(2), 1)",
            f"b, c, h, w = x.shape\nx = {conv}(x.reshape(b * 2, c // 2, h, w)).reshape(b, c, h, w)",
            f"b, c, h, w = x.size()\nx = {conv}(x.view(2 * b, -1, h, w)).view(b, -1, h, w)",
            f"x = {conv}(x.unflatten(1, (2, -1)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)",
            f"x = torch.cat([{conv}(p) for p in x.chunk(2, 1)], 1)",
            f"x = torch.stack([{conv}(p) for p in x.chunk(2, 1)], 1).flatten(1, 2)",
            f"b, c, h, w = x.shape\nx = {conv}(x.reshape(-1, c // 2, h, w))\nx = x.view(b, c, *x.shape[2:])",
        )
    )
    return c, s


@idiom()
def stepwise(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Res2Net and its kin: parts of the channels, one layer each, one after another."""
    n = w.pick(2, 3)
    width = w.rng.randint(1, 4)
    first = w.conv(c, n * width, 1)
    layers = w.layer(f"nn.ModuleList([nn.Conv2d({width}, {width}, 3, padding=1) for _ in range({n - 1})])", "convs")
    w.do(
        f"spx = torch.split({first}(x), {width}, {w.pick('1', 'dim=1')})",
        "outs = [spx[0]]\nsp = spx[0]",
        w.pick(
            f"for i, conv in enumerate({layers}):\n    sp = F.relu(conv(sp + spx[i + 1]))\n    outs.append(sp)",
            f"for part, conv in zip(spx[1:], {layers}):\n    sp = conv(part)\n    outs = outs + [sp]",
            f"for i in range({n - 1}):\n    sp = {layers}[i](spx[i + 1] if i == 0 else sp + spx[i + 1])\n    outs.append(sp)",
        ),
        f"x = {w.joined(['*outs'])}",
    )
    return n * width, s


@idiom(3)
def places(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Subscripts of channels and positions."""
    k = w.rng.randint(1, c - 1)
    some = w.rng.sample(range(c), k)
    index = w.buffer(f"torch.tensor({some})")
    mask = w.buffer(f"torch.tensor({[i in some for i in range(c)]})")
    order = w.rng.sample(range(c), c)
    places_ = w.buffer(f"torch.tensor({order})")
    code, out = w.pick(
        (f"x[:, {k}:]", c - k),
        (f"x[:, :{k}]", k),
        (f"x[:, -{k}:]", k),
        (f"x[:, :-{k}]", c - k),
        (f"x[:, 0:{k}, ...]", k),
        (f"x[:, slice(0, {k})]", k),
        ("x[:, ::2]", (c + 1) // 2),
        ("x[:, 1::2]", c // 2),
        (f"x[:, {some}]", k),
        (f"x[:, {index}]", k),
        (f"x[:, {index}, :, :]", k),
        (f"x[:, {mask}]", k),
        (f"x[:, {places_}]", c),
        (f"x.index_select(1, {index})", k),
        (f"torch.index_select(x, dim=1, index={places_})", c),
        (f"x.narrow(1, 0, {k})", k),
        ("x[:, None].squeeze(1)", c),
        ("x[..., None].sum(-1)", c),
        ("x[:, :, None].amax(2)", c),
        ("x.flip(1)", c),
        ("torch.flip(x, [2])", c),
        ("torch.flip(x, dims=(-1,))", c),
        ("x.roll(1, 1)", c),
        ("torch.roll(x, 1, dims=2)", c),
        ("torch.roll(x, shifts=(1, -1), dims=(2, 3))", c),
        (f"torch.cat([x[:, {k}:], x[:, :{k}]], 1)", c),
        (f"torch.cat((F.relu(x[:, :{k}]), x[:, {k}:]), dim=1)", c),
        (f"torch.cat([x, x[:, :{min(k, 3)}]], 1)", c + min(k, 3)),
        (f"torch.cat([x[:, i : i + 1] for i in {some}], 1)", k),
        (f"torch.stack([x[:, i] for i in {some}], dim=1)", k),
        (f"x[:, [{k}]]", 1),
        (f"x[:, {k}].unsqueeze(1)", 1),
        (f"x.select(1, {k})[:, None]", 1),
        (f"x.take_along_dim({places_}.view(1, -1, 1, 1), 1)", c),
        (f"torch.gather(x, 1, {places_}.view(1, -1, 1, 1).expand(x.shape[0], -1, {s}, {s}))", c),
        ("x.repeat(1, 2, 1, 1)", 2 * c),
        ("torch.cat([x, -x], 1)", 2 * c),
        ("torch.cat([x] * 2, dim=1)", 2 * c),
        ("x.repeat_interleave(2, dim=1)", 2 * c),
        ("x.repeat_interleave(2, 1)[:, ::2]", c),
        ("x[:, :, 1:-1, 1:-1]" if s > 3 else "x", c),
    )
    w.do(f"x = {code}")
    if "1:-1" in code:
        w.do("x = F.pad(x, (1, 1, 1, 1))")
    out2 = w.width()
    w.do(f"x = {w.conv(out, out2, w.pick(1, 3))}(x)")
    return out2, s


@idiom(2)
def shuffle(w: Writer, c: int, s: int) -> tuple[int, int]:
    groups = next((g for g in (3, 2, 4) if c % g == 0 and w.maybe(0.8)), 1)
    layer = w.layer(f"nn.ChannelShuffle({groups})", "shuffle")
    w.do(
        w.pick(
            f"b, c, h, w = x.size()\nx = x.view(b, {groups}, c // {groups}, h, w)\n"
            "x = torch.transpose(x, 1, 2).contiguous()\nx = x.view(b, -1, h, w)",
            f"b, c, h, w = x.shape\nx = x.reshape(b, {groups}, -1, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)",
            f"x = x.unflatten(1, ({groups}, -1)).transpose(1, 2).flatten(1, 2)",
            f"x = torch.cat([x[:, i::{c // groups}] for i in range({c // groups})], 1)",
            f"x = x.view(x.shape[0], {groups}, {c // groups}, *x.shape[2:]).swapaxes(1, 2).flatten(1, 2)",
            f"x = {layer}(x)",
            f"x = F.channel_shuffle(x, {groups})",
            f"x = torch.channel_shuffle(input=x, groups={groups})",
            f"x = torch.stack(x.chunk({groups}, 1), 2).flatten(1, 2)",
            f"b, c, h, w = x.shape\nx = x.reshape(b * c // {groups}, {groups}, h * w).permute(1, 0, 2)\n"
            f"x = x.reshape({groups}, -1, c // {groups}, h, w)\n"
            "x = torch.cat([p for p in x], 1)"
            if w.maybe(0.2)
            else f"x = x.view(x.size(0), {groups}, -1, x.size(2) * x.size(3)).transpose(1, 2).reshape_as(x)",
        )
    )
    if w.maybe(0.6):
        out = w.width(groups)
        w.do(f"x = {w.layer(f'nn.Conv2d({c}, {out}, 3, padding=1, groups={groups})')}(x)")
        return out, s
    return c, s


@idiom(2)
def grouped(w: Writer, c: int, s: int) -> tuple[int, int]:
    kind = w.pick("depthwise", "multiplied", "groups", "separable", "blur", "transposed", "one-channel")
    if kind == "multiplied":
        w.do(f"x = {w.layer(f'nn.Conv2d({c}, {2 * c}, 3, 1, 1, groups={c})')}(x)")
        w.do(f"x = {w.conv(2 * c, c, 1)}(x)")
    elif kind == "separable":
        out = w.width()
        w.do(f"x = {w.conv(c, out, 1)}({w.layer(f'nn.Conv2d({c}, {c}, 3, padding=1, groups={c})')}(x))")
        return out, s
    elif kind == "groups":
        groups = w.pick(*[g for g in (2, 3, 4, 1) if c % g == 0])
        out = w.width(groups)
        w.do(f"x = {w.layer(f'nn.Conv2d({c}, {out}, 3, padding=1, groups={groups})')}(x)")
        return out, s
    elif kind == "blur":
        table = w.buffer("torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0]))[None, None] / 16")
        w.do(
            w.pick(
                f"x = F.conv2d(x, {table}.expand({c}, -1, -1, -1), padding=1, groups={c})",
                f"x = F.conv2d(x, {table}.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])",
                f"x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode='reflect'), {table}.expand({c}, 1, 3, 3), groups=x.size(1))",
                f"x = F.conv2d(x.flatten(0, 1).unsqueeze(1), {table}, padding=1).view_as(x)",
                f"b, c, h, w = x.shape\nx = F.conv2d(x.reshape(b * c, 1, h, w), {table}, padding=1).view(b, c, h, w)",
            )
        )
    elif kind == "one-channel":
        conv = w.conv(1, 1, 3)
        w.do(
            w.pick(
                f"b, c, h, w = x.shape\nx = {conv}(x.view(b * c, 1, h, w)).view(b, c, h, w)",
                f"b, c, h, w = x.shape\nx = {conv}(x.reshape(-1, 1, h, w)).reshape(-1, c, h, w)",
                f"x = torch.cat([{conv}(p) for p in x.split(1, 1)], dim=1)",
                f"x = {conv}(x.flatten(0, 1)[:, None]).squeeze(1).unflatten(0, x.shape[:2])",
            )
        )
    elif kind == "transposed":
        out = w.width()
        groups = w.pick(1, 1, *[g for g in (2, 3) if c % g == 0 and out % g == 0])
        layer = w.layer(f"nn.ConvTranspose2d({c}, {out}, 2, stride=2, groups={groups})", "up")
        w.do(f"x = F.avg_pool2d({layer}(x), 2)" if w.maybe() else f"x = {layer}(x)[:, :, ::2, ::2]")
        return out, s
    else:
        layer = w.layer(f"nn.Conv2d({c}, {c}, 3, padding=1, groups={c})", "dw")
        w.do(f"x = {layer}(x)" if w.maybe() else f"x = x + {layer}(x)")
    w.activate()
    return c, s


@idiom(2)
def several_times(w: Writer, c: int, s: int) -> tuple[int, int]:
    out = w.width()
    same, other = w.conv(c, c, w.pick(1, 3)), w.conv(c, out, 1)
    act = w.layer("nn.ReLU(inplace=True)", "relu")
    kind = w.pick("loop", "two", "tied", "list", "sum", "scales", "norms")
    if kind == "loop":
        times = w.rng.randint(2, 3)
        w.do(
            f"for _ in range({times}):\n    x = {w.pick(f'F.silu({same}(x))', f'x + {act}({same}(x))', f'{same}(x).tanh()')}"
        )
        return c, s
    if kind == "two":
        w.do(
            f"y = {other}(x)\nz = {other}(torch.flip(x, (3,)))\nx = {w.pick('y + z', 'torch.cat([y, z], 1)', 'y * z')}"
        )
        return (2 * out if "cat" in w.lines[-1] else out), s
    if kind == "tied":
        second = w.conv(c, c, 1)
        first = w.layer(f"nn.Conv2d({c}, {c}, 1)")
        w.made.append(f"{second}.weight = {first}.weight")
        w.do(f"x = {second}({act}({first}(x)))")
        return c, s
    if kind == "list":
        w.do(
            f"outs = [{other}(p) for p in (x, x.relu(), -x)]\nx = {w.pick('sum(outs)', 'torch.cat(outs, 1)', 'torch.stack(outs).mean(0)')}"
        )
        return (3 * out if "cat" in w.lines[-1] else out), s
    if kind == "scales":
        w.do(
            f"y = F.interpolate({other}(F.avg_pool2d(x, 2)), size=x.shape[-2:], mode='nearest')"
            if s > 2
            else f"y = {other}(x * 2)",
            f"x = {other}(x) + y",
        )
        return out, s
    if kind == "norms":
        first, second = w.layer(f"nn.BatchNorm2d({c})", "bn1"), w.layer(f"nn.BatchNorm2d({c})", "bn2")
        w.do(f"x = {second}({act}({same}({first}({same}(x)))))")
        return c, s
    w.do(f"x = sum({same}(x * k) for k in (1, 2)) / 2")
    return c, s


@idiom(3)
def gate(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Squeeze and excite, and everything else that weighs channels or positions by a number of their own."""
    inner = w.rng.randint(2, 4)
    kind = w.pick("convs", "linears", "mean", "cbam", "position", "coordinate", "own", "eca", "simam")
    if kind == "convs":
        a, b = w.layer(f"nn.Conv2d({c}, {inner}, 1)"), w.layer(f"nn.Conv2d({inner}, {c}, 1)")
        w.do(f"y = {b}(F.relu({a}({w.pooled('x', True, s)})))")
    elif kind == "linears":
        a, b = w.linear(c, inner), w.linear(inner, c)
        w.do(f"y = {b}(F.relu({a}({w.pooled('x', False, s)})))")
        w.do(
            w.pick(
                "y = y.view(x.shape[0], x.shape[1], 1, 1)",
                f"y = y.view(-1, {c}, 1, 1)",
                "y = y[:, :, None, None]",
                "y = y[..., None, None]",
                "y = y.unsqueeze(2).unsqueeze(3)",
                "y = y.unsqueeze(-1).unsqueeze(-1).expand_as(x)",
                "b, c, _, _ = x.size()\ny = y.view(b, c, 1, 1)",
                "y = y.reshape(*y.shape, 1, 1)",
                "y = y.view(*x.shape[:2], 1, 1)",
                "y = y.unflatten(1, (-1, 1, 1))",
            )
        )
    elif kind == "mean":
        mean = w.pick(
            *("x.mean(1, keepdim=True)", "x.mean(dim=1, keepdim=True)", "x.mean(axis=1, keepdims=True)"),
            *("torch.mean(x, 1, True)", "x.sum(1, keepdim=True) / x.shape[1]", "x.mean(-3).unsqueeze(1)"),
            *("x.sum(1, keepdim=True) / x.size(1)", f"x.sum(dim=1, keepdim=True) / {c}", "x.mean(1)[:, None]"),
            *("x.max(1, keepdim=True)[0]", "x.amax(1, True)", "torch.max(x, dim=1, keepdim=True).values"),
            *(
                "x.norm(dim=1, keepdim=True)",
                "(x * x).mean(1, True)",
                "x.mean((1, 2, 3), keepdim=True)",
                "x.var(1, True)",
            ),
        )
        w.do(f"y = {mean}")
    elif kind == "cbam":
        conv = w.conv(2, 1, 3)
        w.do(
            w.pick(
                "y = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)",
                "y = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)",
                "y = torch.stack([x.mean(1), x.amax(1)], 1)",
                "values, _ = torch.max(x, dim=1, keepdim=True)\ny = torch.cat([x.mean(1, True), values], 1)",
            ),
            f"y = {conv}(y)",
        )
    elif kind == "position":
        w.do(f"y = {w.conv(c, 1, 1)}(x)")
        w.do(
            w.pick(
                "",
                "y = y.flatten(2).softmax(-1).view_as(y)",
                "y = y.expand_as(x)",
                "y = F.softmax(y.flatten(1), dim=1).view(y.shape)",
            )
            or "pass"
        )
    elif kind == "coordinate":
        a, b, d = w.conv(c, inner, 1), w.conv(inner, c, 1), w.conv(inner, c, 1)
        w.do(
            f"h = x.mean(3, keepdim=True)\nv = x.mean(2, keepdim=True).{w.pick('permute(0, 1, 3, 2)', 'transpose(2, 3)', 'mT')}",
            f"y = F.hardswish({a}(torch.cat([h, v], dim=2)))",
            w.pick(
                f"h, v = torch.split(y, [{s}, {s}], dim=2)",
                "h, v = y.chunk(2, 2)",
                f"h, v = y[:, :, :{s}], y[:, :, {s}:]",
            ),
            f"y = {b}(h) * {d}(v.permute(0, 1, 3, 2))",
        )
    elif kind == "eca":
        conv = w.layer("nn.Conv1d(1, 1, 3, padding=1, bias=False)")
        w.do(
            w.pick(
                f"y = {conv}(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)",
                f"y = {conv}(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None]",
                f"y = {conv}(x.mean((2, 3)).view(x.size(0), 1, -1)).view(x.size(0), -1, 1, 1)",
            )
        )
    elif kind == "simam":
        w.do(
            "y = (x - x.mean((2, 3), keepdim=True)).pow(2)\ny = y / (4 * (y.sum((2, 3), keepdim=True) / 15 + 1e-4)) + 0.5"
        )
    else:
        gamma = w.parameter(*w.pick((c, 1, 1), (1, c, 1, 1), (1, 1, s, s), (1,), (c, s, s), (1, c, s, s), (s, 1)))
        w.do(f"y = {gamma}")
    w.do(
        w.pick(
            "x = x * torch.sigmoid(y)",
            "x = torch.sigmoid(y) * x",
            "x = x.mul(y.sigmoid())",
            "x = torch.mul(input=x, other=torch.sigmoid(input=y))",
            "x = x * F.hardsigmoid(y)",
            "x = x * (1 + torch.tanh(y))",
            "x *= y.sigmoid()",
            "x = x + x * torch.sigmoid(y).expand_as(x)",
            "x = x / (1 + y.abs())",
            "x = x - y",
            "x -= y",
            "x /= 2 + y.tanh()",
            "x = torch.where(y > 0, x, 0.5 * x)",
            "x = x.masked_fill(y < -1, 0.0)",
        )
    )
    return c, s


@idiom()
def selective(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Selective kernels and split attention: a softmax over branches, channel by channel."""
    out, inner, n = w.rng.randint(2, 6), w.rng.randint(2, 4), w.pick(2, 3)
    convs = w.layer(f"nn.ModuleList([nn.Conv2d({c}, {out}, 3, padding=1) for _ in range({n})])", "convs")
    fc = w.linear(out, inner)
    heads = w.layer(f"nn.ModuleList([nn.Linear({inner}, {out}) for _ in range({n})])", "fcs")
    one = w.linear(inner, n * out)
    w.do(
        w.pick(
            f"y = torch.stack([conv(x) for conv in {convs}], dim=1)",
            f"y = torch.cat([conv(x).unsqueeze(1) for conv in {convs}], 1)",
            f"y = torch.cat([conv(x) for conv in {convs}], 1).unflatten(1, ({n}, {out}))",
            f"y = torch.cat([conv(x) for conv in {convs}], 1).view(x.shape[0], {n}, -1, {s}, {s})",
        ),
        f"z = F.relu({fc}(y.sum(1).mean((2, 3))))",
        w.pick(
            f"a = torch.stack([head(z) for head in {heads}], 1).softmax(1)[..., None, None]",
            f"a = F.softmax({one}(z).view(-1, {n}, {out}), dim=1).unsqueeze(-1).unsqueeze(-1)",
            f"a = {one}(z).reshape(x.size(0), {n}, {out}, 1, 1).softmax(dim=1)",
            f"a = torch.softmax(torch.cat([head(z)[:, None] for head in {heads}], 1), 1)[:, :, :, None, None]",
        ),
        w.pick(
            "x = (y * a).sum(1)",
            "x = torch.sum(y * a, dim=1)",
            "x = torch.einsum('bnchw,bncij->bchw', y, a)",
            "x = sum((y * a).unbind(1))",
        ),
    )
    return out, s


@idiom(2)
def norms(w: Writer, c: int, s: int) -> tuple[int, int]:
    groups = w.pick(*[g for g in (2, 3, 4, 1, c) if c % g == 0])
    layer = w.pick(
        f"nn.BatchNorm2d({c}, affine=False)",
        f"nn.GroupNorm({groups}, {c})",
        f"nn.GroupNorm({groups}, {c}, affine=False)",
        f"nn.GroupNorm(1, {c})",
        f"nn.InstanceNorm2d({c})",
        f"nn.InstanceNorm2d({c}, affine=True, track_running_stats=True)",
        f"nn.LayerNorm([{c}, {s}, {s}])",
        f"LayerNorm2d({c})",
        f"OwnNorm({c})",
        "nn.LocalResponseNorm(3)",
        f"nn.BatchNorm2d({c}, eps=1e-3)",
    )
    gamma, beta = w.parameter(c), w.parameter(c)
    norm = w.layer(f"nn.LayerNorm({c})", "norm")
    w.do(
        w.pick(
            f"x = {w.layer(layer, 'bn', 'norm', 'gn')}(x)",
            f"x = {w.layer(layer, 'bn', 'norm', 'gn')}(input=x)",
            f"x = {norm}(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
            f"x = {norm}(x.movedim(1, -1)).movedim(-1, 1)",
            f"x = F.layer_norm(x.permute(0, 2, 3, 1), ({c},), {gamma}, {beta}, 1e-6).permute(0, 3, 1, 2)",
            "x = F.layer_norm(x, x.shape[1:])",
            f"x = F.group_norm(x, {groups}, {gamma}, {beta})",
            f"x = F.group_norm(x, num_groups={groups}, weight={gamma}, bias={beta}, eps=1e-4)",
            "x = F.instance_norm(x)",
            f"u = x.mean(1, keepdim=True)\nv = (x - u).pow(2).mean(1, keepdim=True)\n"
            f"x = {gamma}[:, None, None] * (x - u) / torch.sqrt(v + 1e-6) + {beta}[:, None, None]",
            f"x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * {gamma}.view(1, -1, 1, 1)",
            "x = F.normalize(x)",
            "x = F.normalize(x, dim=1) * 2",
            "x = F.normalize(x.flatten(2), p=2.0, dim=-1).view_as(x)",
            "x = x / (x.norm(dim=1, keepdim=True) + 1e-6)",
            "x = x / (torch.norm(x, p=2, dim=(2, 3), keepdim=True) + 1e-6)",
            "x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)",
            "x = (x - x.mean(dim=(2, 3), keepdim=True)) * (x.var(dim=(2, 3), keepdim=True) + 1e-3).rsqrt()",
            f"g = torch.norm(x, p=2, dim=(2, 3), keepdim=True)\nx = {gamma}.view(1, -1, 1, 1) * (x * g / (g.mean(dim=1, keepdim=True) + 1e-6)) + x",
            "x = x.softmax(1)",
            "x = torch.softmax(x, dim=1) * 5",
            "x = F.softmax(x.flatten(2), dim=-1).view(x.shape)",
            "x = F.softmax(x, 2)",
            f"x = F.batch_norm(x, {gamma}, {beta} ** 2 + 0.5, eps=1e-3)",
            "x = F.log_softmax(x, -1)",
            f"x = {w.layer('nn.Softmax2d()', 'sm')}(x)",
            "x = x.cumsum(2)",
            "x = x - x.amax(1, keepdim=True)",
        )
    )
    return c, s


@idiom(1.5)
def in_place(w: Writer, c: int, s: int) -> tuple[int, int]:
    y, conv = w.local(), w.conv(c, c, 1)
    gamma = w.parameter(1, c, 1, 1)
    w.do(
        w.pick(
            f"{y} = {conv}(x)\n{y} += x\nx = {y}",
            f"{y} = {conv}(x)\n{y}.add_(x, alpha=2)\nx = {y}",
            f"{y} = {conv}(x)\n{y} *= {gamma}\nx = {y} + x",
            f"{y} = x\nx = {conv}(x)\nx.mul_(2)\nx = x + {y}",
            f"{y} = {conv}(x)\n{y}.sub_(0.5).div_(2.0)\nx = {y}",
            f"{y} = x.clone()\nx = {conv}(x)\nx.relu_()\nx += {y}",
            f"x = {conv}(x)\n{y} = x.relu()\nx.mul_(0.5)\nx = x + {y}",
            f"x = {conv}(x)\n{y} = F.relu(x, inplace=True)\nx = x + {y}",
            f"x = {conv}(x)\n{y} = x.view(x.shape[0], -1)\n{y}.mul_(0.5)",
            f"x = {conv}(x)\n{y} = x[:, :2]\n{y}.relu_()"
            if w.maybe()
            else f"x = {conv}(x)\na, b = x.chunk(2, 1)\na.sigmoid_()",
            f"x = {conv}(x)\n{y} = x.detach()\n{y}.clamp_(min=-0.1)",
            f"x = {conv}(x)\nx **= 2"
            if w.maybe()
            else f"x = {conv}(x)\nx //= 1"
            if w.maybe()
            else f"x = {conv}(x)\nx /= 3",
            f"x = {conv}(x)\nx = x.add_({gamma}).mul_({gamma})",
            f"x = {conv}(x)\nx = torch.mul(x, {gamma}, out=None)",
            f"x = {conv}(x)\nx.neg_()\nx = x.exp().log1p_()",
            f"x = {conv}(x)\nx.copy_(x.flip(1))",
            f"x = {conv}(x)\nx.addcmul_(x, x, value=0.1)",
        )
    )
    return c, s
