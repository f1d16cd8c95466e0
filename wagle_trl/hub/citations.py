"""The papers of the attribution scores. Reports name the papers of objectives."""

from ..papers import Paper

SCORE_PAPERS = {
    "wagle": Paper(
        "2410.17509",
        "{WAGLE}: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models",
        "Jia, Jinghan and Liu, Jiancheng and Zhang, Yihua and Ram, Parikshit and Baracaldo, Nathalie and Liu, Sijia",
    ),
    "gradient": Paper(
        "2310.12508",
        "{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation",
        "Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia",
    ),
    "snip": Paper(
        "1810.02340",
        "{SNIP}: Single-shot Network Pruning based on Connection Sensitivity",
        "Lee, Namhoon and Ajanthan, Thalaiyasingam and Torr, Philip H. S.",
    ),
}
