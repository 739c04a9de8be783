"""Idioms of transformers, of views, of dynamic weights, and of layers that the library does not know."""

from __future__ import annotations

from idioms.writing import Writer, idiom


def _split_heads(w: Writer, heads: int, d: int, n: int) -> str:
    return w.pick(
        f"b, n, c = t.shape\nq, k, v = {{qkv}}(t).reshape(b, n, 3, {heads}, {d}).permute(2, 0, 3, 1, 4).unbind(0)",
        f"b, n, c = t.shape\nqkv = {{qkv}}(t).reshape(b, n, 3, {heads}, -1).permute(2, 0, 3, 1, 4)\nq, k, v = qkv[0], qkv[1], qkv[2]",
        f"b, n, _ = t.shape\nq, k, v = (u.view(b, n, {heads}, {d}).transpose(1, 2) for u in {{qkv}}(t).chunk(3, dim=-1))",
        f"b, n, _ = t.size()\nq, k, v = {{qkv}}(t).split({heads * d}, dim=2)\n"
        + "\n".join(f"{u} = {u}.view(b, n, {heads}, {d}).transpose(1, 2)" for u in "qkv"),
        f"q, k, v = {{qkv}}(t).unflatten(-1, (3, {heads}, {d})).transpose(1, 3).unbind(2)",
        f"q, k, v = torch.unbind({{qkv}}(t).view(-1, {n}, {heads}, 3, {d}).permute(3, 0, 2, 1, 4), dim=0)",
    )


@idiom(3)
def attention(w: Writer, c: int, s: int) -> tuple[int, int]:
    heads, d = w.rng.randint(1, 3), w.rng.randint(1, 4)
    qkv, proj = w.linear(c, 3 * heads * d), w.linear(heads * d, c)
    w.do(f"t = {w.tokens()}")
    n = s * s
    if w.maybe(0.4):
        w.do(f"t = {w.layer(f'nn.LayerNorm({c})', 'norm')}(t)")
    w.do(_split_heads(w, heads, d, n).replace("{qkv}", qkv))
    if w.maybe(0.2):
        bias = w.parameter(*w.pick((heads, n, n), (1, heads, 1, 1), (heads, 1, n), (n, n)))
        w.do(f"a = (q @ k.transpose(-2, -1) * {d}**-0.5 + {bias}).softmax(-1)\nt = a @ v")
    else:
        w.do(
            w.pick(
                "t = F.scaled_dot_product_attention(q, k, v)",
                "t = F.scaled_dot_product_attention(query=q, key=k, value=v, dropout_p=0.0, is_causal=True)",
                f"q = q * {d} ** -0.5\na = q @ k.transpose(-2, -1)\na = a.softmax(dim=-1)\nt = a @ v",
                "a = torch.matmul(q, k.mT) / q.shape[-1] ** 0.5\nt = torch.matmul(F.softmax(a, dim=-1), v)",
                "a = torch.einsum('bhid,bhjd->bhij', q, k).softmax(-1)\nt = torch.einsum('bhij,bhjd->bhid', a, v)",
                "a = q.mul(0.3).matmul(k.transpose(2, 3)).sub(0.1).softmax(3)\nt = a.matmul(v)",
                "k = k.softmax(-2)\nq = F.softmax(q, dim=-1)\nt = q @ (k.transpose(-2, -1) @ v)",
                "q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)\nt = ((q.mT @ k).softmax(-1) @ v.mT).mT",
                "q, k = F.elu(q) + 1, F.elu(k) + 1\nz = 1 / (torch.einsum('bhnd,bhd->bhn', q, k.sum(2)) + 1e-6)\n"
                "t = torch.einsum('bhnd,bhde,bhn->bhne', q, torch.einsum('bhnd,bhne->bhde', k, v), z)",
                "a = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype), q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1)\n"
                "t = (a @ v.flatten(0, 1)).view_as(v)"
                if w.maybe(0.2)
                else "a = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).softmax(-1)\n"
                "t = torch.bmm(a, v.flatten(0, 1)).view(v.shape)",
            )
        )
    w.do(
        w.pick(
            f"t = t.transpose(1, 2).reshape(t.shape[0], {n}, {heads * d})",
            "t = t.transpose(1, 2).flatten(2)",
            f"t = t.permute(0, 2, 1, 3).contiguous().view(t.size(0), -1, {heads * d})",
            "t = t.transpose(1, 2).flatten(-2, -1)",
            f"t = t.permute(0, 2, 1, 3).reshape(-1, {n}, t.shape[1] * t.shape[3])",
        ),
        f"t = {proj}(t)",
    )
    y = w.grid("t", c, s)
    w.do(f"x = x + {y}" if w.maybe(0.7) else f"x = {y}")
    return c, s


@idiom(1.5)
def own_attention(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Attention from convolutions: non-local blocks, global context, attention over channels, torch's own layer."""
    inner = w.rng.randint(2, 6)
    q, k, v = (w.conv(c, inner, 1) for _ in range(3))
    back = w.conv(inner, c, 1)
    kind = w.pick("non-local", "global", "channels", "separate", "torch", "classes", "gram")
    if kind == "non-local":
        w.do(
            f"q, k, v = {q}(x).flatten(2), {k}(x).flatten(2), {v}(x).flatten(2)",
            w.pick(
                "a = torch.bmm(q.permute(0, 2, 1), k)\ny = torch.bmm(v, a.softmax(-1).permute(0, 2, 1))",
                "a = F.softmax(q.transpose(1, 2) @ k, dim=-1)\ny = (a @ v.transpose(1, 2)).transpose(1, 2)",
                "a = torch.einsum('bci,bcj->bij', q, k).softmax(2)\ny = torch.einsum('bij,bcj->bci', a, v)",
            ),
            f"x = x + {back}(y.reshape({w.batch()}, {inner}, {s}, {s}))",
        )
    elif kind == "global":
        score = w.conv(c, 1, 1)
        w.do(
            w.pick(
                f"a = {score}(x).flatten(1).softmax(-1)\ny = torch.einsum('bcn,bn->bc', x.flatten(2), a)[..., None, None]",
                f"a = F.softmax({score}(x).view(x.size(0), -1, 1), 1)\ny = torch.matmul(x.flatten(2), a).unsqueeze(-1)",
                f"a = {score}(x).flatten(2).softmax(2).unsqueeze(-1)\ny = torch.matmul(x.flatten(2).unsqueeze(1), a).view(x.shape[0], -1, 1, 1)",
            ),
            f"x = x + {back}(F.relu({q}(y)))",
        )
    elif kind == "channels":
        w.do(
            f"q, k, v = (m(x).flatten(2) for m in ({q}, {k}, {v}))",
            "a = (q @ k.transpose(1, 2)).softmax(-1)\ny = (a @ v).view(x.shape[0], -1, *x.shape[2:])",
            f"x = {back}(y)",
        )
    elif kind == "separate":
        a, b, d, e = (w.linear(c, 2 * inner) for _ in range(4))
        out = w.linear(2 * inner, c)
        w.do(
            f"t = {w.tokens()}",
            f"q, k, v = [m(t).unflatten(-1, (2, {inner})).transpose(1, 2) for m in ({a}, {b}, {d})]",
            f"t = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * torch.sigmoid({e}(t))",
            f"t = {out}(t)",
            f"x = {w.grid('t', c, s)}",
        )
    elif kind == "torch":
        heads = w.pick(*[h for h in (1, 2, 3) if c % h == 0])
        layer = w.layer(f"nn.MultiheadAttention({c}, {heads}, batch_first=True)", "attn")
        w.do(
            f"t = {w.tokens()}",
            w.pick(
                f"t, _ = {layer}(t, t, t)",
                f"t = {layer}(t, t, t, need_weights=False)[0]",
                f"t = t + {layer}(query=t, key=t, value=t, need_weights=False)[0]",
            ),
            f"x = {w.grid('t', c, s)}",
        )
    elif kind == "classes":
        token = w.parameter(1, 1, c)
        a, b = w.linear(c, inner), w.linear(inner, c)
        w.do(
            f"t = {w.tokens()}",
            w.pick(
                f"t = torch.cat([{token}.expand(t.shape[0], -1, -1), t], dim=1)",
                f"t = torch.cat(({token}.repeat(t.size(0), 1, 1), t), 1)",
                f"t = torch.cat([{token}.expand_as(t[:, :1]), t], 1)",
            ),
            f"t = t + {b}(F.gelu({a}(t)))",
            w.pick(
                "y, t = t[:, :1], t[:, 1:]",
                "y, t = t[:, 0].unsqueeze(1), t[:, 1:, :]",
                f"y, t = t.split([1, {s * s}], 1)",
            ),
            "t = t * torch.sigmoid(y)",
            f"x = {w.grid('t', c, s)}",
        )
    else:
        w.do(
            f"y = {q}(x).flatten(2)\ng = y @ y.transpose(1, 2) / y.shape[-1]\nx = {back}((g @ y).view(x.size(0), {inner}, {s}, {s}))"
        )
    return c, s


@idiom(2)
def mlp(w: Writer, c: int, s: int) -> tuple[int, int]:
    inner, n = w.width(), s * s
    a, b = w.linear(c, inner), w.linear(inner, c)
    wide, half = w.linear(c, 2 * inner), w.linear(inner, c)
    mix, back = w.layer(f"nn.Linear({n}, 6)", "mix"), w.layer(f"nn.Linear(6, {n})", "back")
    kind = w.pick("tokens", "last", "mixer", "glu", "seq", "window", "moe")
    if kind == "last":
        w.do(
            f"x = {w.pick('x.permute(0, 2, 3, 1)', 'x.movedim(1, -1)', 'x.transpose(1, 3)')}",
            f"x = x + {b}({w.activated(f'{a}(x)') if w.maybe(0.01) else f'F.gelu({a}(x))'})",
        )
        w.do(
            "x = x.transpose(1, 3)"
            if "transpose(1, 3)" in w.lines[-2]
            else w.pick("x = x.permute(0, 3, 1, 2)", "x = x.movedim(-1, 1)")
        )
    elif kind == "mixer":
        w.do(
            f"t = {w.tokens()}\nt = t + {back}(F.gelu({mix}(t.transpose(1, 2)))).transpose(1, 2)\nt = t + {b}(F.gelu({a}(t)))"
        )
        w.do(f"x = {w.grid('t', c, s)}")
    elif kind == "glu":
        w.do(f"t = {w.tokens()}")
        w.do(
            w.pick(
                f"t = {half}(F.glu({wide}(t), dim=-1))",
                f"u, g = {wide}(t).chunk(2, dim=-1)\nt = {half}(u * F.silu(g))",
                f"u = {wide}(t)\nt = {half}(u[..., :{inner}] * torch.sigmoid(u[..., {inner}:]))",
                f"u, g = {wide}(t).unflatten(-1, (2, -1)).unbind(-2)\nt = {half}(F.gelu(u) * g)",
                f"u, g = {wide}(t).tensor_split(2, -1)\nt = {half}(u * g)",
            ),
            f"x = {w.grid('t', c, s)}",
        )
    elif kind == "seq":
        layer = w.layer(
            f"nn.Sequential(nn.LayerNorm({c}), nn.Linear({c}, {inner}), nn.GELU(), nn.Dropout(0.1), nn.Linear({inner}, {c}))",
            "mlp",
        )
        w.do(f"t = {w.tokens()}\nt = t + {layer}(t)\nx = {w.grid('t', c, s)}")
    elif kind == "window" and s >= 4:
        k = s // 2
        w.do(
            f"b, c, h, w = x.shape\nt = x.view(b, c, 2, {k}, 2, {k}).permute(0, 2, 4, 3, 5, 1).reshape(-1, {k * k}, c)",
            f"t = t + {b}(F.gelu({a}(t)))",
            f"x = t.view(-1, 2, 2, {k}, {k}, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)",
        )
    elif kind == "moe":
        gate = w.linear(c, 2)
        experts = w.layer(f"nn.ModuleList([nn.Linear({c}, {inner}) for _ in range(2)])", "experts")
        w.do(
            f"t = {w.tokens()}\ng = {gate}(t).softmax(-1)",
            f"y = torch.stack([e(t) for e in {experts}], {w.pick('-1', '2')})",
        )
        w.do("t = (y * g.unsqueeze(2)).sum(-1)" if "-1)" in w.lines[-1][-4:] else "t = (y * g.unsqueeze(-1)).sum(2)")
        w.do(f"x = {w.grid('t', inner, s)}")
        return inner, s
    else:
        w.do(f"t = {w.tokens()}\nt = {b}(F.silu({a}(t)))\nx = {w.grid('t', c, s)}")
    return c, s


@idiom(1.5)
def einsums(w: Writer, c: int, s: int) -> tuple[int, int]:
    out = w.width()
    weight = w.parameter(out, c)
    turned = w.parameter(c, out)
    g = next((g for g in (2, 3) if c % g == 0), 1)
    own = w.parameter(g, c // g, out)
    kernel = w.parameter(out, c, 3, 3)
    w.do(
        w.pick(
            f"x = torch.einsum('bchw,oc->bohw', x, {weight})",
            f"x = torch.einsum('oc,bchw->bohw', {weight}, x)",
            f"x = torch.einsum('b c h w, c o -> b o h w', x, {turned})",
            f"x = torch.tensordot(x, {weight}, dims=([1], [1])).permute(0, 3, 1, 2)",
            f"x = ({weight} @ x.flatten(2)).view(x.shape[0], {out}, {s}, {s})",
            f"x = torch.matmul(x.permute(0, 2, 3, 1), {turned}).permute(0, 3, 1, 2)",
            f"x = F.linear(x.permute(0, 2, 3, 1), {weight}).permute(0, 3, 1, 2)",
            f"x = F.linear(input=x.movedim(1, -1), weight={weight}, bias=None).movedim(-1, 1)",
            f"x = F.conv2d(x, {weight}[:, :, None, None])",
            f"x = F.conv2d(x, weight={weight}.view({out}, {c}, 1, 1))",
            f"x = F.conv2d(input=x, weight={kernel}, padding=1)",
            f"x = torch.conv2d(x, {kernel}, None, 1, 1)",
            f"x = F.conv2d(x, {kernel} / {kernel}.flatten(1).norm(dim=1).view(-1, 1, 1, 1), padding='same')",
            f"x = torch.einsum('bgchw,gco->bohw', x.unflatten(1, ({g}, {c // g})), {own})",
            f"x = torch.einsum('bchw,oc,bchw->bohw', x, {weight}, x)",
        )
    )
    return out, s


@idiom(1.5)
def pixels(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Between channels and positions."""
    if s < 4:
        return c, s
    small, width, out = w.conv(c, 3, 1), w.rng.randint(1, 3), w.width()
    down = w.pick(
        f"y = {small}(x)\nx = torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1)",
        f"x = F.pixel_unshuffle({small}(x), 2)",
        f"x = {w.layer('nn.PixelUnshuffle(2)', 'down')}({small}(x))",
        f"y = {small}(x)\nb, c, h, w = y.shape\nx = y.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)",
        f"y = {small}(x)\nb, c, h, w = y.shape\nx = y.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)",
        f"y = {small}(x)\nb, _, h, w = y.shape\nx = F.unfold(y, 2, stride=2).view(b, -1, h // 2, w // 2)",
        f"y = {small}(x)\nx = torch.cat([y[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)",
    )
    if w.maybe():
        w.do(down, f"x = {w.conv(12, out, 1)}(x)")
        return out, s // 2
    conv = w.conv(c, 4 * width, 1)
    w.do(
        w.pick(
            f"x = F.pixel_shuffle({conv}(x), 2)",
            f"x = {w.layer('nn.PixelShuffle(2)', 'up')}({conv}(x))",
            f"y = {conv}(x)\nb, c, h, w = y.shape\nx = y.view(b, {width}, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, {width}, h * 2, w * 2)",
        ),
        f"x = {w.conv(width, out, 1)}(F.avg_pool2d(x, 2))",
    )
    return out, s


@idiom()
def sizes(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Interpolation, padding and unusual pooling."""
    conv = w.conv(c, c, 3)
    w.do(
        w.pick(
            f"y = F.interpolate({conv}(x), scale_factor=2, mode='nearest')\nx = F.avg_pool2d(y, 2)",
            f"y = F.adaptive_avg_pool2d({conv}(x), 1)\nx = x + F.interpolate(y, size=x.shape[2:], mode='bilinear', align_corners=True)",
            f"y = F.adaptive_avg_pool2d({conv}(x), (2, 1))\nx = x * F.interpolate(y, size=x.size()[-2:])",
            f"x = F.max_pool2d(F.pad({conv}(x), (0, 1, 0, 1)), 2, stride=1)",
            f"x = {w.layer('nn.ReflectionPad2d(1)', 'pad')}({conv}(x))[:, :, 1:-1, 1:-1]",
            f"x = F.pad({conv}(x), (1, 1, 1, 1), mode='replicate')[..., 2:, 2:]",
            f"x = torch.cat([{conv}(x), F.adaptive_avg_pool2d(x, 1).expand(-1, -1, {s}, {s})], 1)[:, :{c}]",
            f"x = {w.layer('nn.Upsample(scale_factor=2)', 'up')}({conv}(x))[:, :, ::2, 1::2]",
            f"x = F.avg_pool2d({conv}(x), 3, 1, 1) + F.max_pool2d(x, 3, 1, padding=1)",
            f"x = F.avg_pool2d({conv}(x), 3, stride=1, padding=1, count_include_pad=False)",
            f"x = torch.cat([F.interpolate(F.adaptive_avg_pool2d({conv}(x), k), size=({s}, {s})) for k in (1, 2)], 1)[:, ::2]",
            f"x = F.grid_sample({conv}(x), F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], -1, -1), x.shape, align_corners=False), align_corners=False)",
            f"x = torch.roll({conv}(x), (1, 1), (2, 3)) + torch.rot90(x, 1, (2, 3))",
        )
    )
    return c, s


@idiom()
def dynamic(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Weights mixed for each image."""
    out, e = w.width(), 2
    weight, router = w.parameter(e, out, c, 3, 3), w.linear(c, e)
    table = w.layer(f"nn.Linear({c}, {c} * 9)", "kernel")
    w.do(
        w.pick(
            f"b, c, h, w = x.shape\nr = torch.sigmoid({router}(x.mean((2, 3))))\n"
            f"k = (r @ {weight}.view({e}, -1)).view(b * {out}, c, 3, 3)\n"
            f"x = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b).view(b, {out}, h, w)",
            f"b, c, h, w = x.shape\nr = {router}(x.mean((2, 3))).softmax(1)\n"
            f"k = torch.einsum('be,eocij->bocij', r, {weight}).flatten(0, 1)\n"
            f"x = F.conv2d(x.view(1, -1, h, w), k, padding=1, groups=b).view(b, -1, h, w)",
            f"r = {router}(x.mean((2, 3))).softmax(-1)\n"
            f"x = sum(r[:, i].view(-1, 1, 1, 1) * F.conv2d(x, {weight}[i], padding=1) for i in range({e}))",
            f"r = {router}(x.mean((2, 3))).sigmoid()\n"
            f"y = torch.stack([F.conv2d(x, k, padding=1) for k in {weight}], 1)\nx = (y * r[:, :, None, None, None]).sum(dim=1)",
            f"b, c, h, w = x.shape\nk = {table}(x.mean((2, 3))).view(b * c, 1, 3, 3)\n"
            f"x = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b * c).view(b, c, h, w)\n"
            f"x = F.conv2d(x, {weight}[0], padding=1)",
        )
    )
    return out, s


@idiom(1.5)
def unknown(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Layers and functions outside any list."""
    conv = w.conv(c, c, w.pick(1, 3))
    layer = w.pick(
        *("MemorySwish()", f"scripted_block({c})", "nn.Softshrink()", "nn.Threshold(0.1, 0.0)", "nn.Hardshrink()"),
        *("nn.RReLU()", "nn.Tanhshrink()", "nn.PReLU()", f"nn.PReLU({c})", "nn.Softsign()", "nn.LogSigmoid()"),
        *("Hooked(nn.ReLU())", f"Hooked(nn.Conv2d({c}, {c}, 1))", f"StandardConv({c}, {c}, 1)", "nn.AlphaDropout()"),
        *(f"SameConv({c}, {c}, 3)", f"nn.utils.parametrizations.weight_norm(nn.Conv2d({c}, {c}, 1))", "nn.GLU(1)"),
        *(f"nn.utils.parametrizations.spectral_norm(nn.Conv2d({c}, {c}, 1)).eval()", "nn.ZeroPad2d((0, 0, 0, 0))"),
        *("nn.FeatureAlphaDropout()", "nn.Dropout2d()", "nn.Identity()", "nn.Unflatten(1, (1, -1))", "nn.Dropout1d()"),
    )
    if layer == "nn.GLU(1)":
        w.do(f"x = {w.layer(layer, 'glu')}({w.conv(c, 8, 1)}(x))")
        return 4, s
    if "Unflatten" in layer:
        w.do(f"x = {w.layer(layer, 'split')}({conv}(x)).squeeze(1)")
        return c, s
    pair = w.layer("SqueezeArgs()", "pair")
    w.do(
        w.pick(
            f"x = {w.layer(layer, 'own', 'act')}({conv}(x))",
            f"x = {w.layer(layer, 'own', 'act')}({conv}(x))",
            f"x = scripted({conv}(x))",
            f"a, b = {pair}({conv}(x), x)\nx = a - b",
            f"a, b = {pair}(a={conv}(x), b=x)\nx = {w.pick('a + b', 'torch.max(a, b)', 'a * b')}",
            f"x = {conv}(x).sort(1)[0]",
            f"x = {conv}(x).sort(2).values",
            f"x = torch.cumsum({conv}(x), 1)",
            f"x = torch.topk({conv}(x), 2, dim=1)[0].repeat(1, {c}, 1, 1)[:, :{c}]",
            f"x = F.prelu({conv}(x), {w.parameter(c)})",
            f"x = torch.fft.fft2({conv}(x)).real / 8",
            f"x = torch.logsumexp(torch.stack([{conv}(x), x]), 0)",
            f"x = torch.special.erf({conv}(x)) + torch.log1p(x.abs())",
            f"x = {conv}(x).double().sign() * x",
            f"x = {conv}(x).to(torch.float64).type_as(x)",
            f"x = torch.nan_to_num({conv}(x)).clip(-3, 3)",
            f"x = {conv}(x).where(x > 0, x * 0.5)",
            f"x = torch.addcdiv({conv}(x), x, x.abs() + 1)",
            f"y, _ = {w.layer(f'nn.GRU({c}, {c}, batch_first=True)', 'rnn')}(x.mean(3).transpose(1, 2))\nx = x + y.transpose(1, 2).unsqueeze(-1)",
            f"x = {conv}(x) if self.training else {conv}(x) * 0.5",
            f"x = {conv}(x) + torch.arange({s}, dtype=x.dtype).view(1, 1, 1, -1)",
            f"x = torch.cat([{conv}(x), torch.linspace(-1, 1, {s}, dtype=x.dtype).expand(x.shape[0], 1, {s}, {s})], 1)[:, 1:]",
            f"x = {conv}(x) * {c} ** -0.5 / x.shape[1]",
            f"x = {conv}(x) * x.shape[1] ** -0.5",
            f"x = {conv}(x) / math.sqrt({c})",
            f"x = ({conv}(x) > 0).to(x.dtype) + x",
            f"x = {conv}(x).round() + x.floor()",
            f"x = torch.square({conv}(x)).add(1e-6).sqrt()",
            f"x = torch.pow({conv}(x), 2) - torch.reciprocal(x.abs() + 1)",
            f"x = torch.complex({conv}(x), x).abs()",
        )
    )
    return c, s


@idiom(0.9)
def decided(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Branches that sizes decide, and steps that symbolic tracing does not follow."""
    out = w.width()
    conv, other = w.conv(c, out, 3), w.conv(c, out, 1)
    w.do(
        w.pick(
            f"if x.shape[-1] > 64:\n    x = F.avg_pool2d(x, 2)\nx = {conv}(x)",
            f"y = {conv}(x)\nif x.shape[1] == y.shape[1]:\n    y = y + x\nx = F.relu(y)",
            f"assert x.dim() == 4\nx = {conv}(x) if x.size(2) % 2 == 0 else {other}(x)",
            f"x = {conv}(x)\nx[:, 0] = 0.0\nx = F.relu(x)",
            f"x = {conv}(x)\nx[:, :1] += 1",
            f"x = {conv}(x)\nfor i in range(x.shape[1] // 2):\n    x = x + i",
            f"x = {conv}(x)\nn = len(x)\nx = x.view(n, -1, {s}, {s})",
        )
    )
    return out, s


@idiom()
def views(w: Writer, c: int, s: int) -> tuple[int, int]:
    """Shape arithmetic that leaves the numbers as they are, or works on groups of channels."""
    g = next((g for g in (2, 3, 4) if c % g == 0 and w.maybe(0.7)), 1)
    d = c // g
    weight, bias, norm = w.parameter(1, g, 1, 1), w.parameter(1, g, 1), w.layer(f"nn.GroupNorm({d}, {d})", "gn")
    conv = w.conv(d, d, 1)
    w.do(
        w.pick(
            f"b, c, h, w = x.shape\nx = F.relu(x.view(b * {g}, c // {g}, h, w)).view(b, c, h, w)",
            f"b, c, h, w = x.shape\ny = x.view(b * {g}, -1, h, w)\nx = (y * torch.sigmoid(y.mean((2, 3), keepdim=True))).view(b, c, h, w)",
            f"b, c, h, w = x.shape\ny = x.reshape(b * {g}, -1, h, w)\nx = {norm}(y).reshape(b, -1, h, w)",
            f"b, c, h, w = x.shape\ny = x.view(b * {g}, -1, h, w)\nx = (y * {conv}(y.mean((2, 3), keepdim=True)).sigmoid()).view(b, c, h, w)",
            f"y = x.unflatten(1, ({g}, {d}))\nx = (y - y.mean(2, keepdim=True)).flatten(1, 2)",
            f"y = x.unflatten(1, ({g}, {d}))\nx = (y * y.mean(1, keepdim=True).sigmoid()).flatten(1, 2)",
            f"y = x.view(x.size(0), {g}, {d}, -1)\nx = (y * {weight}).view_as(x)",
            f"y = x.view(x.size(0), {g}, -1)\nx = (y + {bias}).view(x.size())",
            f"b, c, h, w = x.shape\ny = x.view(b * {g}, -1, h, w)\nt = (y * F.adaptive_avg_pool2d(y, 1)).sum(1, keepdim=True)\n"
            f"t = t.view(b * {g}, -1)\nt = t - t.mean(1, keepdim=True)\nt = (t / (t.std(1, keepdim=True) + 1e-5)).view(b, {g}, h, w)\n"
            f"t = (t * {weight}).view(b * {g}, 1, h, w)\nx = (y * t.sigmoid()).view(b, c, h, w)",
            f"y = x.view(x.shape[0], {g}, {d}, x.shape[2], x.shape[3]).amax(2)\nx = y.repeat(1, {d}, 1, 1)",
            f"y = x.unflatten(1, ({d}, {g})).amax(dim=2)\nx = torch.cat([y] * {g}, 1)",
            "b, c = x.shape[:2]\nx = F.relu(x.reshape(b * c, *x.shape[2:])).reshape(b, c, *x.shape[2:])",
            "x = x.flatten(1).relu().view(x.shape)",
            "x = x.flatten(1).unflatten(1, x.shape[1:])",
            "x = x.view(x.shape[:2] + (-1,)).softmax(-1).view(x.shape)",
            "x = x.reshape(x.shape[0], -1).reshape(x.shape)",
            f"x = x.permute(1, 0, 2, 3).flatten(1).tanh().view({c}, -1, {s}, {s}).transpose(0, 1)",
            f"x = x.transpose(1, 3).transpose(1, 2).reshape(-1, {c}).relu().view(-1, {s}, {s}, {c}).permute(0, 3, 1, 2)",
            "b, c, h, w = x.shape\nx = x.flatten(0, 1).view(b, c, h, w).contiguous()",
            "x = x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)[:, ::2]",
            f"x = torch.atleast_3d(x.flatten(2)).unflatten(-1, ({s}, -1))",
            "x = x.as_strided(x.size(), x.stride())" if w.maybe(0.2) else "x = x.squeeze().view(x.shape)",
            f"x = x.view(-1, {c}, {s * s}).view(x.size())",
            "x = x.T.T" if w.maybe(0.2) else "x = x.mT.mT",
        )
    )
    return c, s
