"""Own modules: rows and columns as signals, recurrent layers, volumes, and transforms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from own_modules import CLASSES, block, network
from torch import nn


@network(sizes=False)
class LstmOverRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 4, 3, padding=1), nn.LSTM(64, 12, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(12, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        x = F.relu(self.conv(x))
        b, c, h, w = x.shape
        out, (hidden, _) = self.lstm(x.permute(0, 2, 1, 3).reshape(b, h, c * w))
        return self.fc2(F.relu(self.fc1(out[:, -1, :] + hidden[-1])))


@network(sizes=False)
class GruOverColumns(nn.Module):
    """A convolutional recurrent network, as for text in images."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, (4, 1), 1), nn.ReLU())
        self.map = nn.Linear(48, 16)
        self.gru = nn.GRU(16, 10, bidirectional=True, num_layers=2)
        self.fc = nn.Linear(20, CLASSES)

    def forward(self, x):
        x = self.cnn(x)
        b, c, h, w = x.size()
        x = self.map(x.view(b, c * h, w).permute(2, 0, 1))
        out, _ = self.gru(x)
        return self.fc(out.mean(0))


@network(sizes=False)
class LstmCellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.fc = nn.Linear(48, 24), nn.LSTMCell(24, 12), nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.embed(x.permute(0, 2, 1, 3).flatten(2)))
        h = x.new_zeros(x.size(0), 12)
        c = torch.zeros(x.size(0), 12, dtype=x.dtype, device=x.device)
        for t in range(0, x.size(1), 4):
            h, c = self.cell(x[:, t], (h, c))
        return self.fc(h)


@network(sizes=False)
class OwnGru(nn.Module):
    """A recurrent cell written by hand."""

    def __init__(self):
        super().__init__()
        self.embed, self.zr, self.n = nn.Linear(48, 24), nn.Linear(24 + 12, 24), nn.Linear(24 + 12, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.embed(x.transpose(1, 2).reshape(x.size(0), 16, -1)))
        h = torch.zeros(x.size(0), 12).to(x)
        for t in (0, 5, 10, 15):
            z, r = torch.sigmoid(self.zr(torch.cat([x[:, t], h], dim=1))).chunk(2, 1)
            n = torch.tanh(self.n(torch.cat([x[:, t], r * h], dim=1)))
            h = (1 - z) * n + z * h
        return self.fc(h)


class CausalConv(nn.Module):
    def __init__(self, c, out, d):
        super().__init__()
        self.pad, self.conv = 2 * d, nn.Conv1d(c, out, 3, padding=2 * d, dilation=d)

    def forward(self, x):
        return self.conv(x)[:, :, : -self.pad].contiguous()


@network(sizes=False)
class TemporalConvs(nn.Module):
    """A temporal convolutional network over the rows."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([CausalConv(48, 16, 1), CausalConv(16, 16, 2), CausalConv(16, 20, 4)])
        self.downs = nn.ModuleList([nn.Conv1d(48, 16, 1), nn.Identity(), nn.Conv1d(16, 20, 1)])
        self.linear = nn.Linear(20, CLASSES)

    def forward(self, x):
        y = x.permute(0, 1, 3, 2).flatten(1, 2)
        for conv, down in zip(self.blocks, self.downs):
            y = F.relu(F.dropout(F.relu(conv(y)), 0.1, self.training) + down(y))
        return self.linear(y[:, :, -1])


@network(sizes=False)
class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(48, 16, 1)
        self.filters = nn.ModuleList(nn.Conv1d(16, 12, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(16, 12, 2, dilation=2**i) for i in range(3))
        self.res, self.skip = (
            nn.ModuleList(nn.Conv1d(12, 16, 1) for _ in range(3)),
            nn.ModuleList(nn.Conv1d(12, 20, 1) for _ in range(3)),
        )
        self.end = nn.Conv1d(20, CLASSES, 1)

    def forward(self, x):
        x = self.start(x.transpose(2, 3).reshape(x.shape[0], -1, x.shape[2]))
        skip = 0
        for i in range(3):
            z = torch.tanh(self.filters[i](x)) * torch.sigmoid(self.gates[i](x))
            s = self.skip[i](z)
            skip = s if i == 0 else skip[:, :, -s.size(2) :] + s
            x = self.res[i](z) + x[:, :, -z.size(2) :]
        return self.end(F.relu(skip)).mean(-1)


@network(sizes=False)
class OneDimensionalUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(48, 16, 3, padding=1), nn.Conv1d(16, 24, 3, stride=2, padding=1)
        self.up, self.c, self.fc = nn.ConvTranspose1d(24, 16, 4, 2, 1), nn.Conv1d(32, 16, 1), nn.Linear(16, CLASSES)
        self.bn = nn.BatchNorm1d(16)

    def forward(self, x):
        a = F.relu(self.a(x.flatten(1, 2)))
        y = F.relu(self.bn(self.up(F.relu(self.b(a)))))
        return self.fc(F.adaptive_max_pool1d(self.c(torch.cat([a, y], 1)), 1).squeeze(-1))


@network(sizes=False)
class ThreeDimensional(nn.Module):
    """Patches in a row as a volume."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.conv2, self.pool = nn.Conv3d(8, 16, (3, 3, 3), padding=1), nn.AdaptiveAvgPool3d(1)
        self.up, self.fc = nn.ConvTranspose3d(16, 12, 2, 2), nn.Linear(12, CLASSES)

    def forward(self, x):
        x = x.unflatten(2, (4, 4)).contiguous()
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 2)
        return self.fc(self.pool(F.relu(self.up(F.relu(self.conv2(x))))).view(x.size(0), -1))


@network(sizes=False)
class TwoPlusOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.space, self.time = (
            nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(12, 16, (3, 1, 1), padding=(1, 0, 0)),
        )
        self.norm, self.fc = nn.InstanceNorm3d(12, affine=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = torch.stack(x.chunk(4, dim=2), dim=2)
        x = F.relu(self.time(F.relu(self.norm(self.space(x)))))
        return self.fc(x.mean(dim=(-3, -2, -1)))


@network()
class FramesShifted(nn.Module):
    """Temporal shift: a quarter of the channels looks one row-block back, a quarter ahead."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.Linear(24, CLASSES),
        )

    def forward(self, x):
        y = F.relu(self.conv1(x))
        n, c, h, w = y.size()
        y = y.view(n, c, 4, h // 4, w)
        fold = c // 4
        out = torch.zeros_like(y)
        out[:, :fold, :-1] = y[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = y[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = y[:, 2 * fold :]
        return self.fc(F.relu(self.conv2(out.view(n, c, h, w))).mean((2, 3)))


@block(16)
class GlobalFilter(nn.Module):
    """A product in the frequencies of the maps."""

    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, 16, 9, 2) * 0.1)
        self.mlp = nn.Sequential(nn.Conv2d(c, 32, 1), nn.GELU(), nn.Conv2d(32, c, 1))

    def forward(self, x):
        f = torch.fft.rfft2(x, dim=(2, 3), norm="ortho")
        f = f * torch.view_as_complex(self.weight)
        return self.mlp(torch.fft.irfft2(f, s=x.shape[-2:], dim=(2, 3), norm="ortho"))


@block(16)
class FourierUnit(nn.Module):
    """A 1x1 convolution on real and imaginary parts of the frequencies."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2 * c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c)

    def forward(self, x):
        h, w = x.shape[-2:]
        f = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        y = F.relu(self.bn(self.conv(torch.cat((f.real, f.imag), dim=1))))
        real, imag = torch.chunk(y, 2, dim=1)
        return torch.fft.irfftn(torch.complex(real, imag), s=(h, w), dim=(-2, -1), norm="ortho")


@block(16)
class AmplitudeOnly(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        a = torch.abs(torch.fft.fft2(x, norm="ortho"))
        return x + self.conv(torch.log1p(torch.fft.fftshift(a, dim=(-2, -1))))


@network(sizes=False)
class Spectrogram(nn.Module):
    """Short-time spectrum of the pixels in a row."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))
        self.conv1, self.conv2, self.fc = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 24, 3, 2, 1),
            nn.Linear(24, CLASSES),
        )

    def forward(self, x):
        s = torch.stft(x.mean(1).flatten(1), n_fft=32, hop_length=16, window=self.window, return_complex=True)
        y = torch.log(s.abs().pow(2) + 1e-3).unsqueeze(1)
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(y)))).mean((2, 3)))


@block(16)
class Haar(nn.Module):
    """A Haar transform by slices, a convolution, and back by a transposed one."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.up = nn.Conv2d(4 * c, 32, 1), nn.ConvTranspose2d(32, c, 2, 2)

    def forward(self, x):
        a, b = x[:, :, 0::2, :] / 2, x[:, :, 1::2, :] / 2
        x1, x2, x3, x4 = a[:, :, :, 0::2], b[:, :, :, 0::2], a[:, :, :, 1::2], b[:, :, :, 1::2]
        bands = torch.cat((x1 + x2 + x3 + x4, -x1 - x2 + x3 + x4, -x1 + x2 - x3 + x4, x1 - x2 - x3 + x4), 1)
        return self.up(F.relu(self.conv(bands)))


@block(16)
class SelectiveScan(nn.Module):
    """A state-space scan over positions, as a sum of decayed states."""

    def __init__(self, c):
        super().__init__()
        self.inp, self.out = nn.Linear(c, 2 * c), nn.Linear(c, c)
        self.a, self.d = nn.Parameter(-torch.rand(c) * 0.3), nn.Parameter(torch.ones(c))
        self.dt = nn.Linear(c, c)

    def forward(self, x):
        b, c, h, w = x.shape
        u, z = self.inp(x.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        dt = F.softplus(self.dt(u))
        decay = torch.cumsum(dt * self.a * 0.05, dim=1)
        y = torch.exp(decay) * torch.cumsum(torch.exp(-decay) * dt * u, dim=1) + self.d * u
        return x + self.out(y * F.silu(z)).transpose(1, 2).view(b, c, h, w)


@block(16)
class ReNet(nn.Module):
    """A recurrent layer over the rows of the maps."""

    def __init__(self, c):
        super().__init__()
        self.rnn, self.back = nn.GRU(c, 8, batch_first=True, bidirectional=True), nn.Conv2d(16, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        y, _ = self.rnn(x.permute(0, 2, 3, 1).contiguous().view(b * h, w, c))
        return x + self.back(y.view(b, h, w, -1).permute(0, 3, 1, 2))


@block(16)
class FoldBack(nn.Module):
    """Patches out, a linear layer on each, and back by overlap."""

    def __init__(self, c):
        super().__init__()
        self.unfold, self.linear = nn.Unfold(kernel_size=4, stride=2, padding=1), nn.Linear(16 * c, 16 * c)

    def forward(self, x):
        cols = self.linear(self.unfold(x).transpose(1, 2)).transpose(1, 2)
        return F.fold(cols, output_size=x.shape[-2:], kernel_size=4, stride=2, padding=1) * 0.25


@network(sizes=False)
class PointNetLike(nn.Module):
    """Pixels as points with coordinates."""

    def __init__(self):
        super().__init__()
        self.mlp1, self.mlp2 = nn.Conv1d(5, 16, 1), nn.Conv1d(32, 24, 1)
        self.bn1, self.fc = nn.BatchNorm1d(16), nn.Linear(24, CLASSES)

    def forward(self, x):
        b, _, h, w = x.shape
        ys, xs = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
        grid = torch.stack([ys, xs]).flatten(1).to(x).expand(b, -1, -1)
        p = F.relu(self.bn1(self.mlp1(torch.cat([x.flatten(2), grid], dim=1))))
        top = torch.max(p, 2, keepdim=True)[0].repeat(1, 1, h * w)
        return self.fc(torch.max(F.relu(self.mlp2(torch.cat([p, top], 1))), 2)[0])


@network(sizes=False)
class NearestNeighbours(nn.Module):
    """Patches as a graph: each gathers its nearest ones."""

    def __init__(self, k=4):
        super().__init__()
        self.k, self.patch = k, nn.Conv2d(3, 16, 4, 4)
        self.edge, self.mlp, self.fc = nn.Linear(32, 24), nn.Linear(24, 20), nn.Linear(20, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        _, n, c = x.shape
        inner = -2 * torch.matmul(x, x.transpose(2, 1))
        xx = torch.sum(x**2, dim=2, keepdim=True)
        idx = (-xx - inner - xx.transpose(2, 1)).topk(k=self.k, dim=-1)[1]
        near = torch.gather(x.unsqueeze(1).expand(-1, n, -1, -1), 2, idx.unsqueeze(-1).expand(-1, -1, -1, c))
        centre = x.unsqueeze(2).expand_as(near)
        y = F.leaky_relu(self.edge(torch.cat((near - centre, centre), dim=-1)), 0.2).max(dim=2)[0]
        return self.fc(F.relu(self.mlp(y)).mean(1))
