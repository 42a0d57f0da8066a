"""Runge-Kutta pairs: methods that estimate the error of every step, for steps chosen by it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .runge_kutta import RungeKutta, Tableau

_EIGHTH = (
    *(14005451 / 335480064, 0.0, 0.0, 0.0, 0.0, -59238493 / 1068277825, 181606767 / 758867731, 561292985 / 797845732),
    *(-1041891430 / 1371343529, 760417239 / 1151165299, 118820643 / 751138087, -528747749 / 2220607170, 1 / 4),
)
_SEVENTH = (
    *(13451932 / 455176623, 0.0, 0.0, 0.0, 0.0, -808719846 / 976000145, 1757004468 / 5645159321, 656045339 / 265891186),
    *(-3867574721 / 1518517206, 465885868 / 322736535, 53011238 / 667516719, 2 / 45, 0.0),
)


@dataclass(frozen=True)
class Fehlberg2(RungeKutta):
    """Fehlberg's pair of orders 2 and 1: three evaluations a step (NASA TR R-315, 1969).

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=((), (1 / 2,), (1 / 256, 255 / 256)),
            b=(1 / 512, 255 / 256, 1 / 512),
            c=(0.0, 1 / 2, 1.0),
            error=(-1 / 512, 0.0, 1 / 512),
            order=2,
        ),
        init=False,
        repr=False,
    )


@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """The pair of Bogacki and Shampine of orders 3 and 2 (Appl. Math. Lett. 2, 1989): three evaluations a step.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=((), (1 / 2,), (0.0, 3 / 4)),
            b=(2 / 9, 1 / 3, 4 / 9),
            c=(0.0, 1 / 2, 3 / 4),
            error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
            order=3,
        ),
        init=False,
        repr=False,
    )


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """The pair of Dormand and Prince of orders 5 and 4 (J. Comp. Appl. Math. 6, 1980): six evaluations a step.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=(
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            ),
            b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
            c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
            error=(
                35 / 384 - 1951 / 21600,
                0.0,
                500 / 1113 - 22642 / 50085,
                125 / 192 - 451 / 720,
                -2187 / 6784 + 12231 / 42400,
                11 / 84 - 649 / 6300,
                -1 / 60,
            ),
            order=5,
        ),
        init=False,
        repr=False,
    )


@dataclass(frozen=True)
class Dopri8(RungeKutta):
    """The pair of Prince and Dormand of orders 8 and 7 (J. Comp. Appl. Math. 7, 1981): thirteen evaluations a step.

    Raises:
        NotSupportedError: by `plan`, for multiplicative noise and for diffusion models.
    """

    tableau: Tableau = field(
        default=Tableau(
            A=(
                (),
                (1 / 18,),
                (1 / 48, 1 / 16),
                (1 / 32, 0.0, 3 / 32),
                (5 / 16, 0.0, -75 / 64, 75 / 64),
                (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
                (29443841 / 614563906, 0.0, 0.0, 77736538 / 692538347, -28693883 / 1125000000, 23124283 / 1800000000),
                (
                    *(16016141 / 946692911, 0.0, 0.0, 61564180 / 158732637, 22789713 / 633445777),
                    *(545815736 / 2771057229, -180193667 / 1043307555),
                ),
                (
                    *(39632708 / 573591083, 0.0, 0.0, -433636366 / 683701615, -421739975 / 2616292301),
                    *(100302831 / 723423059, 790204164 / 839813087, 800635310 / 3783071287),
                ),
                (
                    *(246121993 / 1340847787, 0.0, 0.0, -37695042795 / 15268766246, -309121744 / 1061227803),
                    *(-12992083 / 490766935, 6005943493 / 2108947869, 393006217 / 1396673457),
                    *(123872331 / 1001029789,),
                ),
                (
                    *(-1028468189 / 846180014, 0.0, 0.0, 8478235783 / 508512852, 1311729495 / 1432422823),
                    *(-10304129995 / 1701304382, -48777925059 / 3047939560, 15336726248 / 1032824649),
                    *(-45442868181 / 3398467696, 3065993473 / 597172653),
                ),
                (
                    *(185892177 / 718116043, 0.0, 0.0, -3185094517 / 667107341, -477755414 / 1098053517),
                    *(-703635378 / 230739211, 5731566787 / 1027545527, 5232866602 / 850066563),
                    *(-4093664535 / 808688257, 3962137247 / 1805957418, 65686358 / 487910083),
                ),
                (
                    *(403863854 / 491063109, 0.0, 0.0, -5068492393 / 434740067, -411421997 / 543043805),
                    *(652783627 / 914296604, 11173962825 / 925320556, -13158990841 / 6184727034),
                    *(3936647629 / 1978049680, -160528059 / 685178525, 248638103 / 1413531060, 0.0),
                ),
            ),
            b=_EIGHTH,
            c=(
                *(0.0, 1 / 18, 1 / 12, 1 / 8, 5 / 16, 3 / 8, 59 / 400, 93 / 200, 5490023248 / 9719169821, 13 / 20),
                *(1201146811 / 1299019798, 1.0, 1.0),
            ),
            error=tuple(eighth - seventh for eighth, seventh in zip(_EIGHTH, _SEVENTH, strict=True)),
            order=8,
        ),
        init=False,
        repr=False,
    )
